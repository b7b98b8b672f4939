# SPDX-License-Identifier: Apache-2.0
"""Rows and records out of the kernel without a Python object per row; see ``rows.h`` and ``ring.h``.

What a program has used, and the switch that makes the kernel measure it, are at the end.

Descriptors are borrowed: who opened them closes them, and keeps them open while
a call is inside.
"""

from libc.errno cimport EAGAIN, EBADMSG, EINTR, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

cdef extern from "rows.h" nogil:
    int SKEP_ENOTSUPP
    int skep_lookup_batch(int fd, const void *start, void *out, void *keys, void *values, uint32_t *count)
    struct skep_walk:
        pass
    int skep_walk_open(skep_walk *walk, uint32_t key_size, uint64_t max_entries, int trie, int ends_early)
    void skep_walk_close(skep_walk *walk)
    int64_t skep_queue_take(int fd, uint32_t value_size, uint32_t room, uint8_t *out)
    int64_t skep_walk_rows(skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
                           uint32_t room)
    int64_t skep_walk_sift(skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
                           uint32_t count)

    struct skep_map_info:
        uint32_t type
        uint32_t id
        uint32_t key_size
        uint32_t value_size
        uint32_t max_entries
    int skep_map_by_id(uint32_t id)
    int skep_map_info_of "skep_map_info"(int fd, skep_map_info *info)
    int skep_lookup(int fd, const void *key, void *value)

cdef extern from "storage.h" nogil:
    struct skep_rows:
        uint8_t *keys
        uint8_t *values
        size_t key_size
        size_t value_size
        uint64_t count
    struct skep_task_key:
        pass
    int skep_task_rows(int map_fd, int proc, skep_rows *rows)
    int skep_cgroup_rows(int map_fd, int root, skep_rows *rows)
    void skep_rows_free(skep_rows *rows)

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
_RESTLESS = "reading rows of a map that changes faster than it can be walked"


cdef object _refusal(int error, str doing):
    """The exception for a negative errno."""
    return OSError(-error, doing)


def map_by_id(uint32_t id):
    """A descriptor of the map of that number, the caller's; needs CAP_SYS_ADMIN."""
    cdef int fd = skep_map_by_id(id)
    if fd < 0:
        raise _refusal(fd, f"opening map {id}")
    return fd


def map_info(int fd):
    """``(type, number, key size, value size, entries at most)`` of a map."""
    cdef skep_map_info info
    cdef int error = skep_map_info_of(fd, &info)
    if error:
        raise _refusal(error, "asking what a map is")
    return info.type, info.id, info.key_size, info.value_size, info.max_entries


def lookup(int fd, const uint8_t[::1] key not None, Py_ssize_t size):
    """The value under a key, ``size`` bytes, or None."""
    cdef bytes value = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(value)
    cdef int error
    with nogil:
        error = skep_lookup(fd, &key[0], out)
    if error == -ENOENT:
        return None
    if error:
        raise _refusal(error, "looking up a key")
    return value


def prefixed(const uint8_t[::1] prefix not None, const uint8_t[::1] keys not None, Py_ssize_t count, Py_ssize_t key_size):
    """``count`` keys, each behind the same prefix."""
    cdef Py_ssize_t before = prefix.shape[0], size = before + key_size, i
    cdef bytes made
    cdef uint8_t *out
    if count * key_size > keys.shape[0]:
        raise ValueError(f"{count} keys of {key_size} bytes do not fit {keys.shape[0]} bytes")
    made = PyBytes_FromStringAndSize(NULL, count * size)
    out = <uint8_t *>PyBytes_AS_STRING(made)
    with nogil:
        for i in range(count):
            memcpy(out + i * size, &prefix[0], before)
            memcpy(out + i * size + before, &keys[i * key_size], key_size)
    return made


cdef object _storage_rows(int fd, int root, Py_ssize_t value_size, bint tasks):
    cdef skep_rows rows
    cdef int error
    memset(&rows, 0, sizeof(rows))
    rows.key_size = sizeof(skep_task_key) if tasks else sizeof(uint64_t)
    rows.value_size = value_size
    try:
        with nogil:
            error = skep_task_rows(fd, root, &rows) if tasks else skep_cgroup_rows(fd, root, &rows)
        if error:
            raise _refusal(error, "reading the storage of every task" if tasks else "reading the storage of every cgroup")
        return (
            rows.count,
            PyBytes_FromStringAndSize(<const char *>rows.keys, <Py_ssize_t>(rows.count * rows.key_size)),
            PyBytes_FromStringAndSize(<const char *>rows.values, <Py_ssize_t>(rows.count * rows.value_size)),
        )
    finally:
        skep_rows_free(&rows)


def task_rows(int fd, int proc, Py_ssize_t value_size):
    """``(count, keys, values)`` of a task storage; ``proc`` is a descriptor of procfs. See ``storage.h``."""
    return _storage_rows(fd, proc, value_size, True)


def cgroup_rows(int fd, int root, Py_ssize_t value_size):
    """``(count, keys, values)`` of a cgroup storage; ``root`` is a descriptor of the highest cgroup."""
    return _storage_rows(fd, root, value_size, False)


cdef class Rows:
    """A read position in the rows of one map; ``start()``, then ``next()`` until it returns 0.

    ``keys`` and ``values`` are reused by the next call. ``by_batch`` says how the
    last read went: False is the key-by-key walk.

    Of a trie the kernel's batch is a walk too, and one that repeats keys: its rows are sifted.
    """

    cdef int fd
    cdef uint32_t key_size, capacity
    cdef uint64_t value_stride, max_entries
    cdef readonly bytearray keys
    cdef readonly bytearray values
    cdef readonly bint by_batch
    cdef bint walk_only, started, done, walk_open, trie, ends_early
    cdef int interruptions
    cdef bytearray cursor_in, cursor_out
    cdef skep_walk walk

    def __cinit__(self, int fd, *, uint32_t key_size, uint64_t value_stride, uint64_t max_entries,
                  uint32_t chunk_rows, bint walk_only=False, bint trie=False, bint ends_early=False):
        if not key_size or not value_stride or not chunk_rows or not max_entries:
            raise ValueError("rows need a key, a value, an entry and room for one")
        self.fd = fd
        self.key_size = key_size
        self.value_stride = value_stride
        self.max_entries = max_entries
        self.walk_only = walk_only
        self.trie = trie
        self.ends_early = ends_early
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

    cdef _open_walk(self):
        if not self.walk_open:
            if skep_walk_open(&self.walk, self.key_size, self.max_entries, self.trie, self.ends_early):
                raise MemoryError("walking the keys of a map")
            self.walk_open = True

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
        cdef uint64_t value_stride = self.value_stride
        cdef int64_t kept
        cdef uint8_t *cursor_in = self.cursor_in
        cdef uint8_t *cursor_out = self.cursor_out
        cdef bint started = self.started
        cdef int fd = self.fd
        cdef int error
        with nogil:
            error = skep_lookup_batch(fd, cursor_in if started else NULL, cursor_out, keys, values, &count)
        if self.trie and count:
            self._open_walk()
            with nogil:
                kept = skep_walk_sift(&self.walk, fd, keys, values, value_stride, count)
            if kept < 0:
                raise _refusal(<int>kept, _RESTLESS)
            if error == 0 or error == -EINTR:
                self.cursor_in, self.cursor_out = self.cursor_out, self.cursor_in
                self.started = True
            else:
                self.done = True
            return <uint32_t>kept
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
        if self.done:
            return 0
        self._open_walk()
        with nogil:
            count = skep_walk_rows(&self.walk, fd, keys, values, value_stride, room)
        if count <= 0:
            self._close_walk()
            self.done = True
        if count < 0:
            raise _refusal(<int>count, _RESTLESS if count == -EAGAIN else "reading rows key by key")
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
