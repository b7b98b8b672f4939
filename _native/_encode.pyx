# SPDX-License-Identifier: Apache-2.0
"""Binding of ``encode.c``: whole frames in, finished byte strings out.

No Python object is made per series. Bytes objects are allocated at their size,
filled without the GIL, and only then shown to anyone.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


# As a plain pointer: nobody else may hold a bytes object that is being written.
cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t size) except NULL


cdef extern from "frame.h":
    const char *SKEP_FRAME_VIEW
    uint32_t SKEP_FRAME_VERSION

    struct skep_frame_view:
        uint32_t version
        uint32_t series_count
        uint32_t cells_per_series


cdef extern from "encode.h" nogil:
    int SKEP_NUMBER_MAX
    int SKEP_POWER_MIN
    int SKEP_POWER_MAX
    uint64_t skep_powers[1][2]

    struct skep_slice:
        const char *data
        size_t len

    struct skep_form:
        uint8_t kind
        uint8_t cell_type
        uint8_t has_sum
        uint8_t has_count
        uint8_t exact
        int32_t exp10
        double factor
        double power
        uint32_t first_cell
        uint32_t buckets
        skep_slice name
        const skep_slice *edges
        skep_slice bounds

    struct skep_points:
        uint64_t first
        uint64_t end
        uint64_t points
        uint64_t size

    size_t skep_text_size(const skep_frame_view *view, const skep_form *form)
    char *skep_text_write(const skep_frame_view *view, const skep_form *form, char *out)
    int skep_points_fit(const skep_frame_view *view, const skep_form *form, uint64_t room, int at_least_one,
                        skep_points *run)
    uint8_t *skep_points_write(const skep_frame_view *view, const skep_form *form, const skep_points *run,
                               uint64_t time_ns, uint8_t *out)
    int64_t skep_fields_fit(const uint8_t *fields, size_t len, uint8_t tag, uint64_t room, int at_least_one,
                            uint64_t *count)
    char *skep_write_decimal(char *out, uint64_t magnitude, int negative, int exp10)
    char *skep_write_double(char *out, double value)


cdef void _fill_powers() except *:
    # Python's integers throughout: the numbers have up to 1,100 bits.
    cdef object k, power, shift, significand, ten = 10, one = 1
    for k in range(SKEP_POWER_MIN, SKEP_POWER_MAX + 1):
        power = ten ** abs(k)
        shift = 127 - ((k * 1741647) >> 19)  # 127 - floor(log2(10^k)): leaves 128 bits
        if k < 0:
            significand = -(-(one << shift) // power)
        elif shift >= 0:
            significand = power << shift
        else:
            significand = -(-power >> -shift)
        skep_powers[k - SKEP_POWER_MIN][0] = significand >> 64
        skep_powers[k - SKEP_POWER_MIN][1] = significand & 0xFFFFFFFFFFFFFFFF


_fill_powers()


cdef class Form:
    """One instrument, compiled: what does not change from series to series.

    Args:
        kind: 0 counter, 1 gauge, 2 histogram.
        cell_type: ``CellType``; of a histogram, of its sum.
        exp10, factor: The scale.
        name: Prometheus name.
        edges: Histogram: ``,le="…"} `` of each count.
        bounds: Histogram: ``explicit_bounds`` as its protobuf field; may be empty.
    """

    cdef skep_form form
    cdef uint64_t cells
    cdef object name
    cdef tuple edges
    cdef object bounds
    cdef skep_slice *slices

    def __cinit__(
        self,
        *,
        int kind,
        int cell_type,
        int exp10,
        double factor,
        uint32_t first_cell,
        bint has_sum,
        bytes name not None,
        tuple edges not None,
        bytes bounds not None,
        bint has_count=True,
    ):
        if not (0 <= kind <= 2 and 0 <= cell_type <= 2 and (kind == 2) == bool(edges)):
            raise ValueError(f"form {name!r}: kind {kind}, cell type {cell_type}, {len(edges)} edges")
        if not -300 <= exp10 <= 300:
            raise ValueError(f"form {name!r}: exponent is {exp10}; must be within 300 of zero")
        self.name, self.edges, self.bounds = name, edges, bounds
        self.form.kind = kind
        self.form.cell_type = cell_type
        self.form.has_sum = has_sum and kind == 2
        self.form.has_count = has_count and kind == 2
        self.form.exact = cell_type != 2 and factor == 1.0 and -22 <= exp10 <= 22
        self.form.exp10 = exp10
        self.form.factor = factor
        self.form.power = 10.0 ** abs(exp10)
        self.form.first_cell = first_cell
        self.form.buckets = len(edges)
        self.form.name.data = PyBytes_AS_STRING(name)
        self.form.name.len = len(name)
        self.form.bounds.data = PyBytes_AS_STRING(bounds)
        self.form.bounds.len = len(bounds)
        self.cells = <uint64_t>first_cell + max(1, len(edges) + self.form.has_sum)
        if edges:
            self.slices = <skep_slice *>PyMem_Calloc(len(edges), sizeof(skep_slice))
            if self.slices == NULL:
                raise MemoryError
            for index, edge in enumerate(edges):
                self.slices[index].data = PyBytes_AS_STRING(<bytes?>edge)
                self.slices[index].len = len(edge)
            self.form.edges = self.slices

    def __dealloc__(self):
        PyMem_Free(self.slices)


cdef const skep_frame_view *_view(object capsule, Form form) except NULL:
    cdef const skep_frame_view *view = <const skep_frame_view *>PyCapsule_GetPointer(capsule, SKEP_FRAME_VIEW)
    if view.version != SKEP_FRAME_VERSION:
        raise ValueError(f"frame view has version {view.version}, this encoder reads {SKEP_FRAME_VERSION}")
    if form.cells > view.cells_per_series:
        raise ValueError(
            f"instrument {form.name!r} reads {form.cells} cells, series of this frame have {view.cells_per_series}"
        )
    return view


cdef object _taken(PyObject *body):
    """Turn an owned pointer into an object."""
    cdef object result = <object>body
    Py_DECREF(result)
    return result


cdef struct text_part:
    # A family's header (view is NULL), or one of its tables.
    const skep_frame_view *view
    const skep_form *form
    const char *header
    size_t header_len
    size_t size


def text(families, bytes tail not None):
    """Render families of the text format.

    Args:
        families: ``(header, ((view capsule, Form), …))`` each; a family without a live series is
            left out, header and all.
        tail: Ready text to follow.
    """
    cdef size_t count = 0, index = 0, family = 0, size = len(tail), tail_len = len(tail)
    cdef const char *tail_data = PyBytes_AS_STRING(tail)
    cdef text_part *parts
    cdef PyObject *body
    cdef char *start
    cdef char *out
    cdef Form form
    # What the parts point into: tuples nobody can change while the GIL is released.
    cdef tuple held = tuple([(<bytes?>header, tuple(tables)) for header, tables in families])

    for header, tables in held:
        count += 1 + len(tables)
    parts = <text_part *>PyMem_Calloc(count + 1, sizeof(text_part))
    if parts == NULL:
        raise MemoryError
    try:
        for header, tables in held:
            parts[index].header = PyBytes_AS_STRING(header)
            parts[index].header_len = len(header)
            index += 1
            for capsule, form in tables:
                parts[index].view = _view(capsule, form)
                parts[index].form = &form.form
                index += 1
        with nogil:
            for index in range(count):
                if parts[index].view == NULL:
                    family = index
                    continue
                parts[index].size = skep_text_size(parts[index].view, parts[index].form)
                if parts[index].size and not parts[family].size:
                    parts[family].size = parts[family].header_len
                    size += parts[family].size
                size += parts[index].size
        body = PyBytes_FromStringAndSize(NULL, size)
        start = out = PyBytes_AS_STRING(<object>body)
        with nogil:
            for index in range(count):
                if not parts[index].size:
                    continue
                if parts[index].view == NULL:
                    memcpy(out, parts[index].header, parts[index].header_len)
                    out += parts[index].header_len
                else:
                    out = skep_text_write(parts[index].view, parts[index].form, out)
            memcpy(out, tail_data, tail_len)
            out += tail_len
    finally:
        PyMem_Free(parts)
    finished = _taken(body)
    if <size_t>(out - start) != size:
        raise RuntimeError(f"a frame changed while it was encoded: wrote {out - start} bytes instead of {size}")
    return finished


cdef class Points:
    """A run of one instrument's data points, measured: take them from series ``first`` on, as many as fit in ``room``.

    Attributes:
        end: The series after the last one taken.
        done: Whether no series is left behind it.
        count: Points taken.
        size: Their bytes in a message.

    Raises:
        ValueError: a series' attribute bytes are no ``KeyValue`` fields.
    """

    cdef skep_points run
    cdef const skep_frame_view *view
    cdef uint64_t series_count
    cdef object capsule
    cdef Form form

    def __cinit__(self, capsule, Form form not None, uint64_t first, uint64_t room, bint at_least_one):
        cdef const skep_frame_view *view = _view(capsule, form)
        cdef skep_points run
        cdef int status
        run.first = first
        with nogil:
            status = skep_points_fit(view, &form.form, room, at_least_one, &run)
        if status:
            raise ValueError(f"instrument {form.name!r}: attributes of series {run.end} are no KeyValue fields")
        self.run, self.view, self.capsule, self.form = run, view, capsule, form
        self.series_count = view.series_count

    @property
    def end(self):
        return self.run.end

    @property
    def done(self):
        return self.run.end == self.series_count

    @property
    def count(self):
        return self.run.points

    @property
    def size(self):
        return self.run.size


cdef struct message_part:
    # Bytes as they are, or (view not NULL) a run of points.
    const skep_frame_view *view
    const skep_form *form
    skep_points run
    const char *data
    size_t size


def message(parts, uint64_t time_ns):
    """Join parts of a message: bytes, and :class:`Points` of the instant ``time_ns``."""
    cdef size_t count = 0, index = 0, total = 0
    cdef message_part *native
    cdef PyObject *body
    cdef char *out
    cdef Points points
    cdef tuple held = tuple(parts)

    count = len(held)
    native = <message_part *>PyMem_Calloc(count + 1, sizeof(message_part))
    if native == NULL:
        raise MemoryError
    try:
        for index, part in enumerate(held):
            if isinstance(part, Points):
                points = part
                native[index].view = points.view
                native[index].form = &points.form.form
                native[index].run = points.run
                native[index].size = points.run.size
            else:
                native[index].data = PyBytes_AS_STRING(<bytes?>part)
                native[index].size = len(part)
            total += native[index].size
        body = PyBytes_FromStringAndSize(NULL, total)
        out = PyBytes_AS_STRING(<object>body)
        with nogil:
            for index in range(count):
                if native[index].view == NULL:
                    memcpy(out, native[index].data, native[index].size)
                else:
                    skep_points_write(native[index].view, native[index].form, &native[index].run, time_ns, <uint8_t *>out)
                out += native[index].size
    finally:
        PyMem_Free(native)
    return _taken(body)


def fields(const uint8_t[::1] encoded not None, uint8_t tag, uint64_t first, uint64_t room, bint at_least_one):
    """Take whole length-delimited fields from offset ``first`` on, as many as fit in ``room`` bytes.

    Returns:
        The offset behind them, and how many they are.

    Raises:
        ValueError: the bytes are not fields with this tag.
    """
    cdef size_t length = encoded.shape[0]
    cdef uint64_t count = 0
    cdef int64_t taken = 0
    if first < length:
        with nogil:
            taken = skep_fields_fit(&encoded[first], length - first, tag, room, at_least_one, &count)
    if taken < 0:
        raise ValueError(f"bytes from {first} on are not fields with tag {tag:#x}")
    return first + taken, count


def decimal(int64_t value, int exp10):
    """``value * 10**exp10`` as exact text; ``exp10`` within 22 of zero. For tests."""
    cdef char buffer[64]
    if not -22 <= exp10 <= 22:
        raise ValueError(f"exponent is {exp10}")
    cdef uint64_t magnitude = <uint64_t>value
    return buffer[: skep_write_decimal(buffer, -magnitude if value < 0 else magnitude, value < 0, exp10) - buffer]


def shortest(double value):
    """The shortest text that reads back as ``value``. For tests."""
    cdef char buffer[64]
    return buffer[: skep_write_double(buffer, value) - buffer]
