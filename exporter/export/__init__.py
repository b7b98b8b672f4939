"""Wire formats and their delivery: frames in, bytes on a socket out.

Knows the formats of a scrape (:mod:`.prometheus`), OTLP protobuf (:mod:`.otlp`), HTTP as a
server of scrapes (:mod:`.server`, with who may ask in :mod:`.web_access`) and as a client of
collectors (:mod:`.sender`).
Sees only the model and, through ``_native/frame.h``, the bytes of a frame; must not
know eBPF: no plan, object, kernel or image. It owns no thread: the agent calls its
blocking functions from threads of its own. Modules are imported one by one, so that
a process that only answers scrapes does not carry protobuf.
"""
