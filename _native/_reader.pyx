# SPDX-License-Identifier: Apache-2.0
"""Rows and records out of the kernel without a Python object per row; see ``rows.h`` and ``ring.h``.

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

ENOTSUPP = SKEP_ENOTSUPP

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
