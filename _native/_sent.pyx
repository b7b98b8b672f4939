# SPDX-License-Identifier: Apache-2.0
"""Binding of ``sent.c``: what one receiver was sent of one instrument."""

import os

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.pycapsule cimport (
    PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "frame.h":
    const char *SKEP_FRAME_VIEW
    uint32_t SKEP_FRAME_VERSION

    struct skep_frame_view:
        uint32_t version
        uint32_t series_count
        uint32_t cells_per_series


cdef extern from "sent.h" nogil:
    enum:
        SKEP_SENT_DAMAGED
    struct skep_sent_config:
        uint8_t keep
        uint8_t is_gauge
        uint8_t cell_type
        uint32_t cells
        uint64_t departed_limit
        uint64_t seed
    struct skep_sent:
        pass
    struct skep_sent_counts:
        uint64_t series
        uint64_t shown
        uint64_t forgotten
        uint64_t bytes
    skep_sent *skep_sent_new(const skep_sent_config *config)
    void skep_sent_free(skep_sent *sent)
    void skep_sent_begin(skep_sent *sent)
    int skep_sent_observe(skep_sent *sent, const skep_frame_view *view, uint32_t first_cell)
    int skep_sent_row(skep_sent *sent, const uint8_t *attributes, uint32_t attributes_len, uint64_t start_ns,
                      const uint64_t *cells)
    void skep_sent_finish(skep_sent *sent, int keep_unseen)
    void skep_sent_yield(skep_sent *sent, skep_sent *other)
    int skep_sent_batch(skep_sent *sent, uint64_t time_ns)
    const skep_frame_view *skep_sent_see(skep_sent *sent)
    uint64_t skep_sent_in_batch(const skep_sent *sent)
    void skep_sent_accept(skep_sent *sent, uint64_t first, uint64_t end)
    void skep_sent_refuse(skep_sent *sent, uint64_t first, uint64_t end, int maybe_taken)
    uint64_t skep_sent_after(const skep_sent *sent, uint64_t first, uint64_t end, uint64_t points)
    skep_sent_counts skep_sent_count(const skep_sent *sent)


cdef uint64_t seed = int.from_bytes(os.urandom(8), "little")


cdef void drop_view(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


cdef class Sent:
    """The series of one instrument as one receiver has them (``sent.c`` says how it works).

    One owner serialises all calls.
    """

    cdef skep_sent *sent
    cdef uint32_t cells

    def __cinit__(self, *, uint8_t keep, bint is_gauge, uint8_t cell_type, uint32_t cells, uint64_t departed_limit):
        cdef skep_sent_config config
        if keep > 2 or cell_type > 2 or not 1 <= cells <= 1 << 20 or (is_gauge and keep == 2):
            raise ValueError(f"keep {keep}, cell type {cell_type}, {cells} cells, gauge {is_gauge}")
        config.keep, config.is_gauge, config.cell_type = keep, is_gauge, cell_type
        config.cells, config.departed_limit, config.seed = cells, departed_limit, seed
        self.cells = cells
        self.sent = skep_sent_new(&config)
        if self.sent == NULL:
            raise MemoryError

    def __dealloc__(self):
        skep_sent_free(self.sent)

    def begin(self):
        skep_sent_begin(self.sent)

    def observe(self, capsule, uint32_t first_cell):
        cdef const skep_frame_view *view = <const skep_frame_view *>PyCapsule_GetPointer(capsule, SKEP_FRAME_VIEW)
        cdef int failed
        if view.version != SKEP_FRAME_VERSION:
            raise ValueError(f"frame view has version {view.version}, this reader knows {SKEP_FRAME_VERSION}")
        if <uint64_t>first_cell + self.cells > view.cells_per_series:
            raise ValueError(
                f"{self.cells} cells from {first_cell} on are read, series of this frame have {view.cells_per_series}"
            )
        with nogil:
            failed = skep_sent_observe(self.sent, view, first_cell)
        self.check(failed)

    cdef check(self, int failed):
        if failed == SKEP_SENT_DAMAGED:
            raise ValueError("attribute bytes of a series are no KeyValue fields")
        if failed:
            raise MemoryError

    def row(self, bytes attributes not None, uint64_t start_ns, bytes cells not None):
        if len(cells) != 8 * self.cells:
            raise ValueError(f"{len(cells)} bytes are not {self.cells} cells")
        self.check(skep_sent_row(self.sent, <const uint8_t *>PyBytes_AS_STRING(attributes), <uint32_t>len(attributes),
                                 start_ns, <const uint64_t *>PyBytes_AS_STRING(cells)))

    def finish(self, bint keep_unseen):
        with nogil:
            skep_sent_finish(self.sent, keep_unseen)

    def yield_to(self, Sent other not None):
        skep_sent_yield(self.sent, other.sent)

    def batch(self, uint64_t time_ns):
        cdef int failed
        if skep_sent_in_batch(self.sent):
            raise RuntimeError(f"{skep_sent_in_batch(self.sent)} series are still in a batch")
        with nogil:
            failed = skep_sent_batch(self.sent, time_ns)
        if failed:
            raise MemoryError

    def view(self):
        capsule = PyCapsule_New(<void *>skep_sent_see(self.sent), SKEP_FRAME_VIEW, drop_view)
        Py_INCREF(self)
        PyCapsule_SetContext(capsule, <void *>self)
        return capsule

    def accept(self, uint64_t first, uint64_t end):
        with nogil:
            skep_sent_accept(self.sent, first, end)

    def refuse(self, uint64_t first, uint64_t end, bint maybe_taken):
        with nogil:
            skep_sent_refuse(self.sent, first, end, maybe_taken)

    def after(self, uint64_t first, uint64_t end, uint64_t points):
        return skep_sent_after(self.sent, first, end, points)

    @property
    def in_batch(self):
        return skep_sent_in_batch(self.sent)

    @property
    def series(self):
        return skep_sent_count(self.sent).series

    @property
    def shown(self):
        return skep_sent_count(self.sent).shown

    @property
    def forgotten(self):
        return skep_sent_count(self.sent).forgotten

    @property
    def memory_bytes(self):
        return skep_sent_count(self.sent).bytes
