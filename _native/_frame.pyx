# SPDX-License-Identifier: Apache-2.0
"""The native side of ``exporter.collect``: tables of series, and decoders of records.

Nothing here decides anything: layouts arrive compiled into tuples of numbers
(``labels.py``, ``frame.py``, ``records.py``). A :class:`Table` or :class:`Stream`
belongs to one owner, which serialises all calls with a lock of its own: most
calls release the GIL while they work, so the GIL protects nothing.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport (
    PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset


cdef extern from "frame.h" nogil:
    const char *SKEP_FRAME_VIEW
    enum:
        SKEP_SERIES_LIVE
        SKEP_SERIES_ROWLESS
    struct skep_series:
        uint64_t start_ns
        uint64_t text
        uint32_t labels_len
        uint32_t attrs_len
        uint32_t changed_s
        uint32_t flags
    struct skep_frame_view:
        uint32_t series_count
        uint32_t cells_per_series
        const skep_series *series
        const uint64_t *cells
        const uint8_t *arena


cdef extern from "buffer.h" nogil:
    struct skep_buf:
        uint8_t *data
        size_t len
    int skep_buf_put(skep_buf *buf, const void *data, size_t len)
    void skep_buf_free(skep_buf *buf)


cdef extern from "labels.h" nogil:
    struct skep_span:
        uint32_t offset
        uint32_t len
    struct skep_table_entry:
        uint64_t value
        skep_span text
    struct skep_condition:
        uint32_t offset_bits
        uint32_t size_bits
        uint32_t table_first
        uint32_t table_count
        uint32_t negated
    struct skep_label_rule:
        uint8_t decoder
        uint8_t flags
        uint16_t resolver
        uint16_t step
        uint16_t count
        uint32_t offset_bits
        uint32_t size_bits
        uint32_t table_first
        uint32_t table_count
        uint32_t condition_first
        uint32_t condition_count
        skep_span prometheus
        skep_span otlp
        skep_span json
    struct skep_labels:
        skep_label_rule *rules
        uint32_t count
        skep_table_entry *table
        skep_condition *conditions
        uint8_t *pool
        skep_span constant_prometheus
        skep_span constant_otlp
        skep_span constant_json
    void skep_labels_free(skep_labels *labels)
    ctypedef int (*skep_resolve_fn)(void *context, int resolver, uint64_t value, const uint8_t *text, size_t len,
                                    skep_buf *out) noexcept


cdef extern from "table.h" nogil:
    uint64_t skep_hash_seed
    struct skep_budget:
        uint64_t limit
        uint64_t used
    struct skep_bits:
        uint32_t offset_bits
        uint32_t size_bits
        uint8_t is_signed
        uint8_t is_float
    struct skep_value_op:
        skep_bits bits
        uint32_t count
        uint32_t cell
        uint8_t cell_type
        uint8_t is_gauge
        uint8_t has_slot
        skep_bits slot
        uint32_t slot_count
    struct skep_record_op:
        skep_value_op value
        uint8_t has_value
        uint8_t is_histogram
        uint8_t has_sum
        uint32_t sum_cell
        uint32_t edge_first
        uint32_t edge_count
        uint32_t below
    struct skep_key_span:
        uint32_t offset
        uint32_t len
        uint8_t is_text
    struct skep_record_config:
        uint32_t record_size
        skep_record_op *ops
        uint32_t op_count
        uint64_t *edges
        skep_key_span *spans
        uint32_t span_count
        uint8_t *mask
    struct skep_frame_config:
        uint32_t key_size
        uint32_t value_size
        uint32_t elements
        uint32_t element_stride
        uint32_t cells
        uint32_t instruments
        skep_value_op *ops
        uint32_t op_count
        skep_record_config records
        skep_labels labels
        skep_span overflow_prometheus
        skep_span overflow_otlp
        uint8_t per_cpu
        uint8_t skip_zero_rows
        uint8_t expire_idle
        uint8_t only_gauges
        uint8_t has_gauges
        uint32_t expire_after_s
        uint64_t start_ns
        skep_budget *budget
        skep_resolve_fn resolve
        void *resolve_context
    struct skep_frame:
        pass
    struct skep_frame_memory:
        uint64_t total
        uint64_t keys
        uint64_t texts
    skep_frame *skep_frame_new(const skep_frame_config *config)
    void skep_frame_free(skep_frame *frame)
    void skep_frame_begin(skep_frame *frame, uint64_t now_ns, int64_t realtime_minus_monotonic_ns)
    int skep_frame_apply(skep_frame *frame, const uint8_t *keys, const uint8_t *values, uint32_t count,
                         uint32_t value_stride, uint32_t cpus)
    void skep_frame_finish(skep_frame *frame)
    int skep_frame_add(skep_frame *frame, const uint8_t *records, size_t len, uint64_t now_ns,
                       int64_t realtime_minus_monotonic_ns)
    const skep_frame_view *skep_frame_see(skep_frame *frame)
    uint32_t skep_frame_live(const skep_frame *frame)
    uint64_t skep_frame_rows(const skep_frame *frame)
    uint64_t skep_frame_folded(const skep_frame *frame)
    void skep_frame_measure(const skep_frame *frame, skep_frame_memory *memory)


cdef extern from "stream.h" nogil:
    struct skep_stream_config:
        skep_labels labels
        uint32_t record_size
        uint32_t time_offset_bits
        uint32_t time_size_bits
        skep_span severity
        skep_span event_name
        skep_span json_name
        uint64_t events_per_s
        uint64_t sample_one_in
        uint8_t enabled
        uint8_t measured
        uint8_t tail_size
        uint32_t tail_offset
        skep_label_rule tail
        skep_resolve_fn resolve
        void *resolve_context
    struct skep_stream_counts:
        uint64_t received
        uint64_t exported
        uint64_t failed
        uint64_t dropped_rate
        uint64_t dropped_disabled
        uint64_t dropped_sample
        uint64_t measured
    struct skep_stream:
        pass
    skep_stream *skep_stream_new(const skep_stream_config *config)
    void skep_stream_limit(skep_stream *stream, uint32_t value_chars, uint32_t attributes)
    void skep_stream_free(skep_stream *stream)
    int skep_stream_decode(skep_stream *stream, const uint8_t *records, size_t len, uint64_t now_ns,
                           int64_t realtime_minus_monotonic_ns, skep_buf *otlp, skep_buf *json,
                           skep_stream_counts *counts)


skep_hash_seed = int.from_bytes(os.urandom(8), "little")


cdef class Resolver:
    """Asks Python for a slow label or for its steps; keeps the exception that C cannot carry."""

    cdef object ask
    cdef tuple names
    cdef tuple steps
    cdef object error

    def __init__(self, ask, names, steps):
        self.ask = ask
        self.names = tuple(names)
        self.steps = tuple(steps)

    cdef raise_kept(self):
        error, self.error = self.error, None
        raise error


cdef int resolve(void *context, int resolver, uint64_t value, const uint8_t *text, size_t length,
                 skep_buf *out) noexcept with gil:
    cdef Resolver self = <Resolver>context
    cdef bytes answer
    try:
        if text == NULL:
            said = self.ask(self.names[resolver], value)
        else:
            said = self.steps[resolver - len(self.names)]((<const char *>text)[:length].decode("utf-8", "replace"))
        answer = (<str>said).encode("utf-8", "replace")
    except BaseException as error:
        self.error = error
        return -2
    return skep_buf_put(out, <const uint8_t *>answer, len(answer))


cdef skep_span span(tuple pair) except *:
    cdef skep_span made
    made.offset, made.len = pair
    return made


cdef void *array(size_t count, size_t size) except NULL:
    cdef void *made = calloc(count if count else 1, size)
    if made == NULL:
        raise MemoryError
    return made


cdef fill_labels(skep_labels *labels, object compiled):
    """Copy ``labels.Compiled`` into C; what was made so far is in ``labels`` if it raises."""
    cdef bytes pool = compiled.pool
    cdef skep_label_rule *rule
    cdef uint32_t i
    labels.pool = <uint8_t *>array(len(pool), 1)
    memcpy(labels.pool, <const uint8_t *>pool, len(pool))
    labels.rules = <skep_label_rule *>array(len(compiled.rules), sizeof(skep_label_rule))
    labels.table = <skep_table_entry *>array(len(compiled.table), sizeof(skep_table_entry))
    labels.conditions = <skep_condition *>array(len(compiled.conditions), sizeof(skep_condition))
    labels.count = len(compiled.rules)
    for i, (decoder, flags, resolver, step, elements, offset_bits, size_bits, first, count, condition_first,
            condition_count, prometheus, otlp, json) in enumerate(compiled.rules):
        rule = &labels.rules[i]
        rule.decoder = decoder
        rule.flags = flags
        rule.resolver = resolver
        rule.step = step
        rule.count = elements
        rule.offset_bits = offset_bits
        rule.size_bits = size_bits
        rule.table_first = first
        rule.table_count = count
        rule.condition_first = condition_first
        rule.condition_count = condition_count
        rule.prometheus = span(prometheus)
        rule.otlp = span(otlp)
        rule.json = span(json)
    for i, (value, text) in enumerate(compiled.table):
        labels.table[i].value = value
        labels.table[i].text = span(text)
    for i, (offset_bits, size_bits, first, count, negated) in enumerate(compiled.conditions):
        labels.conditions[i] = skep_condition(offset_bits, size_bits, first, count, negated)
    labels.constant_prometheus = span(compiled.constant_prometheus)
    labels.constant_otlp = span(compiled.constant_otlp)
    labels.constant_json = span(compiled.constant_json)


cdef skep_bits bits(tuple rule) except *:
    cdef skep_bits made
    made.offset_bits, made.size_bits, made.is_signed, made.is_float = rule
    return made


cdef class Budget:
    """How many label sets times instruments the tables that share it may have live."""

    cdef skep_budget budget

    def __cinit__(self, uint64_t limit):
        self.budget.limit = limit

    @property
    def limit(self):
        return self.budget.limit

    @property
    def used(self):
        return self.budget.used


cdef free_records(skep_record_config *records):
    free(records.ops)
    free(records.edges)
    free(records.spans)
    free(records.mask)


cdef fill_records(skep_record_config *records, object compiled):
    """Copy ``tally.Compiled`` into C; what was made so far is in ``records`` if it raises."""
    cdef bytes mask = compiled.mask
    cdef skep_record_op *op
    cdef uint32_t i
    records.ops = <skep_record_op *>array(len(compiled.ops), sizeof(skep_record_op))
    records.edges = <uint64_t *>array(len(compiled.edges), sizeof(uint64_t))
    records.spans = <skep_key_span *>array(len(compiled.spans), sizeof(skep_key_span))
    records.mask = <uint8_t *>array(len(mask), 1)
    memcpy(records.mask, <const uint8_t *>mask, len(mask))
    for i, (where, cell, cell_type, is_histogram, sum_cell, edge_first, edge_count, below) in enumerate(compiled.ops):
        op = &records.ops[i]
        if where is not None:
            op.has_value = 1
            op.value.bits = bits(where)
        op.value.count = 1
        op.value.cell = cell
        op.value.cell_type = cell_type
        op.is_histogram = is_histogram
        if sum_cell is not None:
            op.has_sum = 1
            op.sum_cell = sum_cell
        op.edge_first = edge_first
        op.edge_count = edge_count
        op.below = below
    records.op_count = len(compiled.ops)
    for i, edge in enumerate(compiled.edges):
        records.edges[i] = edge
    for i, (offset, size, is_text) in enumerate(compiled.spans):
        records.spans[i].offset = offset
        records.spans[i].len = size
        records.spans[i].is_text = is_text
    records.span_count = len(compiled.spans)
    records.record_size = compiled.record_size


cdef void drop_table(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


# The budget and the resolver are used until the very end, so the collector may not clear them.
@cython.no_gc_clear
cdef class Table:
    """A frame's rows and series (``frame.c`` says how it works)."""

    cdef skep_frame *frame
    cdef Budget budget
    cdef Resolver resolver
    cdef uint32_t map_key_size
    cdef uint32_t value_size
    cdef bint per_cpu
    cdef bint from_records

    def __cinit__(self, *, labels, ops, records, budget, ask, resolvers, key_size, value_size, elements, element_stride,
                  cells, instruments, per_cpu, skip_zero_rows, expire_idle, gauges, expire_after_s, start_ns):
        cdef skep_frame_config config
        cdef skep_value_op *op
        cdef uint32_t i
        memset(&config, 0, sizeof(config))
        self.budget = budget
        self.resolver = Resolver(ask, resolvers, labels.steps)
        self.map_key_size = key_size
        config.key_size = key_size + (4 if elements > 1 else 0)
        config.elements = elements
        config.element_stride = element_stride
        self.value_size = config.value_size = value_size
        self.per_cpu = config.per_cpu = per_cpu
        config.cells = cells
        config.instruments = instruments
        config.skip_zero_rows = skip_zero_rows
        config.expire_idle = expire_idle
        config.has_gauges = gauges > 0
        config.only_gauges = gauges == instruments
        config.expire_after_s = expire_after_s
        config.start_ns = start_ns
        config.overflow_prometheus = span(labels.overflow_prometheus)
        config.overflow_otlp = span(labels.overflow_otlp)
        config.budget = &self.budget.budget
        config.resolve = resolve
        config.resolve_context = <void *>self.resolver
        try:
            fill_labels(&config.labels, labels)
            config.ops = <skep_value_op *>array(len(ops), sizeof(skep_value_op))
            config.op_count = len(ops)
            for i, (where, count, cell, cell_type, is_gauge, slot, slot_count) in enumerate(ops):
                op = &config.ops[i]
                op.bits = bits(where)
                op.count = count
                op.cell = cell
                op.cell_type = cell_type
                op.is_gauge = is_gauge
                op.slot_count = slot_count
                if slot is not None:
                    op.has_slot = 1
                    op.slot = bits(slot)
            if records is not None:
                fill_records(&config.records, records)
                self.from_records = config.records.record_size > 0
            self.frame = skep_frame_new(&config)
            if self.frame == NULL:
                raise MemoryError
        except BaseException:
            skep_labels_free(&config.labels)
            free_records(&config.records)
            free(config.ops)
            raise

    def __dealloc__(self):
        skep_frame_free(self.frame)

    def begin(self, uint64_t now_ns, int64_t realtime_minus_monotonic_ns):
        """Start a read of all rows."""
        skep_frame_begin(self.frame, now_ns, realtime_minus_monotonic_ns)

    def apply(self, keys, values, uint32_t count, uint32_t value_stride, uint32_t cpus):
        """Take ``count`` rows; the buffers must hold that many."""
        cdef Py_buffer key_buffer, value_buffer
        cdef int result
        cdef uint64_t slot = value_stride // cpus if cpus else 0
        if self.from_records:
            raise ValueError("this table is fed with records, not with rows")
        if cpus < 1 or slot < self.value_size or (cpus > 1 and (slot % 8 or not self.per_cpu)):
            raise ValueError(f"values of {self.value_size} bytes do not fit a stride of {value_stride} for {cpus} CPUs")
        PyObject_GetBuffer(keys, &key_buffer, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(values, &value_buffer, PyBUF_SIMPLE)
            try:
                if <uint64_t>key_buffer.len < <uint64_t>count * self.map_key_size:
                    raise ValueError(f"{count} keys of {self.map_key_size} bytes do not fit {key_buffer.len} bytes")
                if <uint64_t>value_buffer.len < <uint64_t>count * value_stride:
                    raise ValueError(f"{count} values of {value_stride} bytes do not fit {value_buffer.len} bytes")
                with nogil:
                    result = skep_frame_apply(self.frame, <const uint8_t *>key_buffer.buf,
                                              <const uint8_t *>value_buffer.buf, count, value_stride, cpus)
            finally:
                PyBuffer_Release(&value_buffer)
        finally:
            PyBuffer_Release(&key_buffer)
        if result == -1:
            raise MemoryError
        if result:
            self.resolver.raise_kept()

    def finish(self):
        """All rows have been brought: forget those that were not among them, expire, compact."""
        with nogil:
            skep_frame_finish(self.frame)

    def add(self, records, uint64_t now_ns, int64_t realtime_minus_monotonic_ns):
        """Count framed records; those shorter than their type are passed over."""
        cdef Py_buffer buffer
        cdef int result
        if not self.from_records:
            raise ValueError("this table is fed with rows, not with records")
        PyObject_GetBuffer(records, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                result = skep_frame_add(self.frame, <const uint8_t *>buffer.buf, <size_t>buffer.len, now_ns,
                                        realtime_minus_monotonic_ns)
        finally:
            PyBuffer_Release(&buffer)
        if result == -1:
            raise MemoryError
        if result == -2:
            self.resolver.raise_kept()
        if result:
            raise ValueError("records are not framed as record.h says")

    def view(self):
        """A capsule ``skep.frame_view``; it keeps the table alive."""
        capsule = PyCapsule_New(<void *>skep_frame_see(self.frame), SKEP_FRAME_VIEW, drop_table)
        Py_INCREF(self)
        PyCapsule_SetContext(capsule, <void *>self)
        return capsule

    @property
    def live(self):
        """Series that are exported."""
        return skep_frame_live(self.frame)

    @property
    def rows(self):
        """Rows that are remembered."""
        return skep_frame_rows(self.frame)

    @property
    def folded(self):
        """Rows that were given to the overflow series so far."""
        return skep_frame_folded(self.frame)

    def memory(self):
        """``(all bytes, bytes of keys, bytes of label text and attributes)``; the last two are in use."""
        cdef skep_frame_memory memory
        skep_frame_measure(self.frame, &memory)
        return memory.total, memory.keys, memory.texts

    def series(self):
        """``(label text, attribute bytes, cells, start_ns, has rows)`` of each live series; for people, not for speed."""
        cdef const skep_frame_view *view = skep_frame_see(self.frame)
        cdef const skep_series *series
        cdef uint32_t i
        made = []
        for i in range(view.series_count):
            series = &view.series[i]
            if not series.flags & SKEP_SERIES_LIVE:
                continue
            made.append((
                PyBytes_FromStringAndSize(<const char *>view.arena + series.text, series.labels_len),
                PyBytes_FromStringAndSize(<const char *>view.arena + series.text + series.labels_len, series.attrs_len),
                PyBytes_FromStringAndSize(<const char *>(view.cells + <size_t>i * view.cells_per_series),
                                          view.cells_per_series * 8),
                series.start_ns,
                not series.flags & SKEP_SERIES_ROWLESS,
            ))
        return made


@cython.no_gc_clear
cdef class Stream:
    """A decoder of one ring's records (``records.c``)."""

    cdef skep_stream *stream
    cdef Resolver resolver

    def __cinit__(self, *, labels, ask, resolvers, record_size, time, severity, event_name, json_name, events_per_s,
                  sample_one_in, enabled, measured, tail):
        cdef skep_stream_config config
        memset(&config, 0, sizeof(config))
        self.resolver = Resolver(ask, resolvers, labels.steps)
        config.record_size = record_size
        if time is not None:
            config.time_offset_bits, config.time_size_bits = time
        config.severity = span(severity)
        config.event_name = span(event_name)
        config.json_name = span(json_name)
        config.events_per_s = events_per_s
        config.sample_one_in = sample_one_in
        config.enabled = enabled
        config.measured = measured
        if tail is not None:
            config.tail.decoder, config.tail_offset, config.tail_size = tail[:3]
            config.tail.offset_bits = config.tail_offset * 8
            config.tail.otlp = span(tail[3])
            config.tail.json = span(tail[4])
        config.resolve = resolve
        config.resolve_context = <void *>self.resolver
        try:
            fill_labels(&config.labels, labels)
            self.stream = skep_stream_new(&config)
            if self.stream == NULL:
                raise MemoryError
        except BaseException:
            skep_labels_free(&config.labels)
            raise

    def __dealloc__(self):
        skep_stream_free(self.stream)

    def limit(self, uint32_t value_chars, uint32_t attributes):
        """Shorten texts and leave out attributes in OTLP; not those that are constant."""
        skep_stream_limit(self.stream, value_chars, attributes)

    def decode(self, records, uint64_t now_ns, int64_t realtime_minus_monotonic_ns, bint otlp, bint json):
        """``(received, exported, failed, dropped by rate, as disabled, by sampling, measured only, OTLP bytes,
        JSON bytes)``."""
        cdef Py_buffer buffer
        cdef skep_buf otlp_out, json_out
        cdef skep_stream_counts counts
        cdef int result
        memset(&otlp_out, 0, sizeof(otlp_out))
        memset(&json_out, 0, sizeof(json_out))
        memset(&counts, 0, sizeof(counts))
        PyObject_GetBuffer(records, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                result = skep_stream_decode(self.stream, <const uint8_t *>buffer.buf, <size_t>buffer.len, now_ns,
                                            realtime_minus_monotonic_ns, &otlp_out if otlp else NULL,
                                            &json_out if json else NULL, &counts)
            if result == -1:
                raise MemoryError
            if result == -2:
                self.resolver.raise_kept()
            if result:
                raise ValueError("records are not framed as record.h says")
            return (
                counts.received, counts.exported, counts.failed, counts.dropped_rate, counts.dropped_disabled,
                counts.dropped_sample, counts.measured,
                PyBytes_FromStringAndSize(<const char *>otlp_out.data, <Py_ssize_t>otlp_out.len),
                PyBytes_FromStringAndSize(<const char *>json_out.data, <Py_ssize_t>json_out.len),
            )
        finally:
            PyBuffer_Release(&buffer)
            skep_buf_free(&otlp_out)
            skep_buf_free(&json_out)
