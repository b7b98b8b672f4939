# SPDX-License-Identifier: Apache-2.0
"""Rows and records out of the kernel without a Python object per row; see ``rows.h`` and ``ring.h``.

What a program has used, and the switch that makes the kernel measure it, are at the end.

Descriptors are borrowed: who opened them closes them, and keeps them open while
a call is inside.
"""

from libc.errno cimport EBADMSG, EINTR, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

cdef extern from "rows.h" nogil:
    int SKEP_ENOTSUPP
    int skep_lookup_batch(int fd, const void *start, void *out, void *keys, void *values, uint32_t *count)
    struct skep_walk:
        pass
    int skep_walk_open(skep_walk *walk, uint32_t key_size, uint64_t max_entries)
    void skep_walk_close(skep_walk *walk)
    int64_t skep_queue_take(int fd, uint32_t value_size, uint32_t room, uint8_t *out)
    int64_t skep_walk_rows(skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride, uint32_t room)

cdef extern from "ring.h" nogil:
    struct skep_ring:
        uint64_t size
    int skep_ring_open(skep_ring *ring, int fd, uint64_t size)
    void skep_ring_close(skep_ring *ring)
    uint64_t skep_ring_used(const skep_ring *ring)
    int64_t skep_ring_measure(const skep_ring *ring, uint64_t limit, uint64_t *end)
    void skep_ring_take(skep_ring *ring, uint64_t end, uint8_t *out)

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/bpf.h>
    #include <stddef.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static long skep_bpf(int command, union bpf_attr *attr)
    {
        long result = syscall(__NR_bpf, command, attr, sizeof(*attr));

        return result < 0 ? -errno : result;
    }

    static int skep_program_usage(int fd, unsigned long *time_ns, unsigned long *runs,
                                  unsigned long *misses, int *has_misses)
    {
        struct bpf_prog_info info;
        union bpf_attr attr;
        long error;

        /* Zeroed: what is asked for besides the numbers (instructions, maps) is asked for by non-zero lengths. */
        memset(&info, 0, sizeof(info));
        memset(&attr, 0, sizeof(attr));
        attr.info.bpf_fd = fd;
        attr.info.info_len = sizeof(info);
        attr.info.info = (unsigned long long)(unsigned long)&info;
        error = skep_bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
        if (error < 0)
            return error;
        *time_ns = info.run_time_ns;
        *runs = info.run_cnt;
        *misses = info.recursion_misses;
        /* The kernel says how much of the structure it knows; this field is since 5.12. */
        *has_misses = attr.info.info_len >= offsetof(struct bpf_prog_info, recursion_misses) + 8;
        return 0;
    }

    static int skep_enable_run_statistics(void)
    {
        union bpf_attr attr;

        memset(&attr, 0, sizeof(attr));
        attr.enable_stats.type = BPF_STATS_RUN_TIME;
        return skep_bpf(BPF_ENABLE_STATS, &attr);
    }

    static int skep_iter_create(int link_fd)
    {
        union bpf_attr attr;

        memset(&attr, 0, sizeof(attr));
        attr.iter_create.link_fd = link_fd;
        return skep_bpf(BPF_ITER_CREATE, &attr);
    }
    """
    int skep_program_usage(int fd, uint64_t *time_ns, uint64_t *runs, uint64_t *misses, int *has_misses) nogil
    int skep_enable_run_statistics() nogil
    int skep_iter_create(int link_fd) nogil

cdef extern from "perf.h" nogil:
    struct skep_perf:
        int fd
        uint64_t size
    int skep_perf_open(skep_perf *perf, int map_fd, uint32_t cpu, uint64_t size, uint32_t watermark)
    void skep_perf_close(skep_perf *perf)
    uint64_t skep_perf_used(const skep_perf *perf)
    uint64_t skep_perf_lost(const skep_perf *perf)
    int64_t skep_perf_measure(const skep_perf *perf, uint64_t limit, uint64_t *end)
    void skep_perf_take(skep_perf *perf, uint64_t end, uint8_t *out)

cdef extern from "record.h" nogil:
    uint64_t SKEP_RECORD_STEP(uint64_t length)

ENOTSUPP = SKEP_ENOTSUPP


def open_iterator(int link_fd):
    """A descriptor whose reading runs an iterator from its beginning; the caller's."""
    cdef int fd = skep_iter_create(link_fd)
    if fd < 0:
        raise _refusal(fd, "starting an iterator")
    return fd


# A batch of wide per-CPU values on a large machine would otherwise ask for gigabytes.
_CHUNK_BYTES = 16 << 20


cdef object _refusal(int error, str doing):
    """The exception for a negative errno."""
    return OSError(-error, doing)


cdef class Rows:
    """A read position in the rows of one map; ``start()``, then ``next()`` until it returns 0.

    ``keys`` and ``values`` are reused by the next call. ``by_batch`` says how the
    last read went: False is the key-by-key walk.
    """

    cdef int fd
    cdef uint32_t key_size, capacity
    cdef uint64_t value_stride, max_entries
    cdef readonly bytearray keys
    cdef readonly bytearray values
    cdef readonly bint by_batch
    cdef bint walk_only, started, done, walk_open
    cdef int interruptions
    cdef bytearray cursor_in, cursor_out
    cdef skep_walk walk

    def __cinit__(self, int fd, *, uint32_t key_size, uint64_t value_stride, uint64_t max_entries,
                  uint32_t chunk_rows, bint walk_only=False):
        if not key_size or not value_stride or not chunk_rows or not max_entries:
            raise ValueError("rows need a key, a value, an entry and room for one")
        self.fd = fd
        self.key_size = key_size
        self.value_stride = value_stride
        self.max_entries = max_entries
        self.walk_only = walk_only
        self.done = True
        self.cursor_in = bytearray(max(4, key_size))
        self.cursor_out = bytearray(max(4, key_size))
        self._resize(min(chunk_rows, max_entries, max(1, _CHUNK_BYTES // (key_size + value_stride))))

    def __dealloc__(self):
        if self.walk_open:
            skep_walk_close(&self.walk)

    cdef _resize(self, uint64_t rows):
        # New objects: a view of the old ones that somebody still holds stays readable.
        self.keys = bytearray(rows * self.key_size)
        self.values = bytearray(rows * self.value_stride)
        self.capacity = <uint32_t>rows

    cdef _close_walk(self):
        if self.walk_open:
            skep_walk_close(&self.walk)
            self.walk_open = False

    def start(self):
        """Go to the first row."""
        self._close_walk()
        self.started = False
        self.done = False
        self.interruptions = 0
        self.by_batch = not self.walk_only

    def next(self):
        """Read further rows; returns how many, 0 at the end."""
        cdef uint32_t count
        if self.by_batch:
            while not self.done:
                count = self._next_batch()
                if not self.by_batch:
                    break
                if count:
                    return count
            else:
                return 0
        return self._next_walk()

    cdef uint32_t _next_batch(self) except? 0:
        cdef uint32_t count = self.capacity
        cdef uint8_t *keys = self.keys
        cdef uint8_t *values = self.values
        cdef uint8_t *cursor_in = self.cursor_in
        cdef uint8_t *cursor_out = self.cursor_out
        cdef bint started = self.started
        cdef int fd = self.fd
        cdef int error
        with nogil:
            error = skep_lookup_batch(fd, cursor_in if started else NULL, cursor_out, keys, values, &count)
        if error == -ENOSPC:
            # One hash bucket holds more rows than there is room for; the cursor has not moved.
            if self.capacity >= 2 * self.max_entries + 64:
                raise _refusal(error, "reading rows by batch")
            self._resize(2 * self.capacity)
            return 0
        if error == -ENOENT:
            self.done = True
            return count
        if error == -EINTR and not count and self.interruptions < 64:
            self.interruptions += 1
            return 0
        if error == 0 or (error == -EINTR and count):
            # -EINTR, not of hashes: a key went away under the kernel's hands; the rows before it are good.
            self.cursor_in, self.cursor_out = self.cursor_out, self.cursor_in
            self.started = True
            return count
        if not started and error in (-EINVAL, -SKEP_ENOTSUPP, -EOPNOTSUPP):
            # No batch for this map type on this kernel: remember it for the next reads too.
            self.by_batch = False
            self.walk_only = True
            return 0
        raise _refusal(error, "reading rows by batch")

    cdef uint32_t _next_walk(self) except? 0:
        cdef uint8_t *keys = self.keys
        cdef uint8_t *values = self.values
        cdef uint64_t value_stride = self.value_stride
        cdef uint32_t room = self.capacity
        cdef int fd = self.fd
        cdef int64_t count
        cdef int error
        if self.done:
            return 0
        if not self.walk_open:
            error = skep_walk_open(&self.walk, self.key_size, self.max_entries)
            if error:
                raise MemoryError("walking the keys of a map")
            self.walk_open = True
        with nogil:
            count = skep_walk_rows(&self.walk, fd, keys, values, value_stride, room)
        if count < 0:
            self._close_walk()
            self.done = True
            raise _refusal(<int>count, "reading rows key by key")
        if count == 0:
            self._close_walk()
            self.done = True
        return <uint32_t>count


cdef class Ring:
    """The consumer of one ring buffer: its pages mapped, its position ours.

    One thread at a time, and :meth:`close` only when no other method is inside.
    """

    cdef skep_ring ring
    cdef bint open

    def __cinit__(self, int fd, uint64_t size):
        cdef int error = skep_ring_open(&self.ring, fd, size)
        if error:
            raise _refusal(error, f"mapping a ring buffer of {size} bytes")
        self.open = True

    def __dealloc__(self):
        skep_ring_close(&self.ring)

    def close(self):
        """Unmap; the descriptor stays its owner's."""
        self.open = False
        skep_ring_close(&self.ring)

    @property
    def size(self):
        """Bytes the kernel can fill."""
        return self.ring.size

    def used(self):
        """Bytes between the two positions, headers and unfinished records included."""
        if not self.open:
            raise ValueError("the ring is closed")
        return skep_ring_used(&self.ring)

    def read(self, uint64_t limit_bytes):
        """Take whole records up to the limit, or one that is larger; ``b""`` when there are none."""
        cdef int64_t size
        cdef uint64_t end = 0
        cdef bytes records
        cdef uint8_t *out
        if not self.open:
            raise ValueError("the ring is closed")
        with nogil:
            size = skep_ring_measure(&self.ring, limit_bytes, &end)
        if size < 0:
            raise OSError(EBADMSG, "reading a ring buffer whose record headers contradict its positions")
        records = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        out = <uint8_t *>PyBytes_AS_STRING(records)
        with nogil:
            skep_ring_take(&self.ring, end, out)
        return records


def program_usage(int fd):
    """What the kernel counted of a program: ``(time_ns, runs, misses)``.

    The first two grow only while the kernel measures. ``misses``: runs left out because the program was running
    on that CPU already; None where the kernel does not count them.
    """
    cdef uint64_t time_ns = 0, runs = 0, misses = 0
    cdef int has_misses = 0
    cdef int error
    with nogil:
        error = skep_program_usage(fd, &time_ns, &runs, &misses, &has_misses)
    if error:
        raise _refusal(error, "reading what a program used")
    return time_ns, runs, misses if has_misses else None


def enable_run_statistics():
    """Have the kernel measure every program for as long as the descriptor that is returned is open."""
    cdef int fd = skep_enable_run_statistics()
    if fd < 0:
        raise _refusal(fd, "enabling BPF statistics")
    return fd


cdef class PerfBuffer:
    """One CPU's buffer of a perf event array, opened and put into the array.

    The array keeps it for as long as the array's own descriptor is open. One thread at a time,
    and :meth:`close` only when no other method is inside.
    """

    cdef skep_perf perf
    cdef bint open

    def __cinit__(self, int map_fd, uint32_t cpu, uint64_t size, uint32_t watermark):
        cdef int error = skep_perf_open(&self.perf, map_fd, cpu, size, watermark)
        if error:
            raise _refusal(error, f"opening the perf buffer of CPU {cpu}, {size} bytes")
        self.open = True

    def __dealloc__(self):
        skep_perf_close(&self.perf)

    def close(self):
        """Unmap and close."""
        self.open = False
        skep_perf_close(&self.perf)

    @property
    def fd(self):
        """To wait for."""
        return self.perf.fd

    @property
    def size(self):
        """Bytes the kernel can fill."""
        return self.perf.size

    def used(self):
        """Bytes between the two positions."""
        if not self.open:
            raise ValueError("the perf buffer is closed")
        return skep_perf_used(&self.perf)

    def lost(self):
        """Records that did not fit so far; before Linux 6.0 as far as the buffer has told."""
        if not self.open:
            raise ValueError("the perf buffer is closed")
        return skep_perf_lost(&self.perf)

    def read(self, uint64_t limit_bytes):
        """Take whole records up to the limit, or one that is larger; ``b""`` when there are none."""
        cdef int64_t size
        cdef uint64_t end = 0
        cdef bytes records
        cdef uint8_t *out
        if not self.open:
            raise ValueError("the perf buffer is closed")
        with nogil:
            size = skep_perf_measure(&self.perf, limit_bytes, &end)
        if size < 0:
            raise OSError(EBADMSG, "reading a perf buffer whose record headers contradict its positions")
        records = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        out = <uint8_t *>PyBytes_AS_STRING(records)
        with nogil:
            skep_perf_take(&self.perf, end, out)
        return records


cdef class Queue:
    """Takes values out of a queue or stack map, many at a time; the descriptor is borrowed."""

    cdef int fd
    cdef uint32_t value_size

    def __cinit__(self, int fd, uint32_t value_size):
        if not value_size:
            raise ValueError("a queue needs values of a size")
        self.fd = fd
        self.value_size = value_size

    def read(self, uint64_t limit_bytes):
        """Take values up to the limit, at least one; ``b""`` when there are none. Each is framed as a record."""
        cdef uint64_t step = SKEP_RECORD_STEP(self.value_size)
        cdef uint64_t room = limit_bytes // step if limit_bytes >= step else 1
        cdef int fd = self.fd
        cdef uint32_t value_size = self.value_size
        cdef int64_t count
        cdef bytearray taken = bytearray(room * step)
        cdef uint8_t *out = taken
        with nogil:
            count = skep_queue_take(fd, value_size, <uint32_t>room, out)
        if count < 0:
            raise _refusal(<int>count, "taking values out of a queue")
        return bytes(memoryview(taken)[:count * step])
