"""Wire formats and their delivery: frames in, bytes on a socket out.

Knows the formats of a scrape (:mod:`.prometheus`), OTLP protobuf (:mod:`.otlp`), HTTP as a
server of scrapes (:mod:`.server`, with who may ask in :mod:`.web_access`) and as a client of
collectors (:mod:`.sender`, over :mod:`.http_transport` or :mod:`.grpc_transport`), and what one
of them has been told of metrics so far (:mod:`.metrics`; the agent's own come by :mod:`.registry`).
Sees only the model and, through ``_native/frame.h``, the bytes of a frame; must not
know eBPF: no plan, object, kernel or image. It owns no thread: the agent calls its
blocking functions from threads of its own. Modules are imported one by one, so that
a process that only answers scrapes does not carry protobuf.
"""
