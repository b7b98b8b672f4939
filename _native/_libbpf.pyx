# SPDX-License-Identifier: Apache-2.0
"""libbpf for the loader child: an object, its programs and its maps, each call that fails an ``OSError``.

``OSError.strerror`` says what was being done; libbpf's own words and the
verifier's go to descriptor 2 (``log.h``). One process loads one object and ends,
so links are never destroyed here: their descriptors are handed out, and a
program stays attached for as long as somebody holds one.
"""

from libc.errno cimport EINVAL, ENOENT, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

cimport libbpf

cdef enum:
    _PERF_EVENT_ARRAY = 4  # of enum bpf_map_type

cdef extern from "log.h" nogil:
    int skep_log_print(int level, const char *format, ...)
    libbpf.libbpf_print_fn_t libbpf_set_print(int (*callback)(int level, const char *format, ...))

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/if_link.h>
    #include <linux/perf_event.h>
    #include <bpf/bpf.h>
    #include <signal.h>
    #include <sys/ioctl.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static int skep_close_from(unsigned first)
    {
    #ifdef __NR_close_range
        return syscall(__NR_close_range, first, ~0u, 0);
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }

    static void skep_close(int fd)
    {
        close(fd);
    }

    static int skep_duplicate(int fd)
    {
        return fcntl(fd, F_DUPFD_CLOEXEC, 3);
    }

    static int skep_die_with_parent(void)
    {
        return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    }

    static int skep_perf_event(unsigned type, unsigned long long config, unsigned long long sample, int by_frequency,
                               int pid, int cpu)
    {
        struct perf_event_attr attr = {
            .type = type, .size = sizeof(attr), .config = config, .sample_period = sample, .freq = !!by_frequency,
        };

        return syscall(__NR_perf_event_open, &attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    }

    static int skep_perf_event_set_bpf(int perf_fd, int program_fd)
    {
        return ioctl(perf_fd, PERF_EVENT_IOC_SET_BPF, program_fd);
    }

    static void skep_netfilter(struct bpf_link_create_opts *opts, unsigned family, unsigned hook, int priority)
    {
        opts->netfilter.pf = family;
        opts->netfilter.hooknum = hook;
        opts->netfilter.priority = priority;
    }

    static int skep_section(const char *section, int *program_type, int *attach_type)
    {
        enum bpf_prog_type type;
        enum bpf_attach_type attach;
        int error = libbpf_prog_type_by_name(section, &type, &attach);

        if (!error) {
            *program_type = type;
            *attach_type = attach;
        }
        return error;
    }

    /* return 0 */
    static const struct bpf_insn skep_nothing[] = {
        { .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
        { .code = BPF_JMP | BPF_EXIT },
    };
    """
    int skep_close_from(unsigned int first) nogil
    void skep_close(int fd) nogil
    int skep_duplicate(int fd) nogil
    int skep_die_with_parent() nogil
    int skep_perf_event(unsigned int type, unsigned long long config, unsigned long long sample, bint by_frequency,
                        int pid, int cpu) nogil
    int skep_perf_event_set_bpf(int perf_fd, int program_fd) nogil
    void skep_netfilter(libbpf.bpf_link_create_opts *opts, uint32_t family, uint32_t hook, int priority) nogil
    int skep_section(const char *section, int *program_type, int *attach_type) nogil
    const libbpf.bpf_insn skep_nothing[2]
    const uint32_t XDP_FLAGS_SKB_MODE

# Of enum bpf_attach_type; the headers that we may be built with lack the newer ones.
KPROBE_MULTI = 42
UPROBE_MULTI = 48
XDP = 37
XDP_GENERIC_FLAG = XDP_FLAGS_SKB_MODE


cdef str _text(const char *name):
    # A damaged object may name things in any bytes; such a name equals none of the request's.
    return name.decode(errors="replace")


def version():
    """The version of the libbpf this process runs with, such as ``1.4.6``."""
    return libbpf.libbpf_version_string().decode().lstrip("v")


def close_from(unsigned int first):
    """Close every descriptor from this number on; an ``OSError`` before Linux 5.9."""
    if skep_close_from(first):
        raise OSError(errno, "closing inherited descriptors")


def die_with_parent():
    """Be killed when the thread that started this process ends."""
    if skep_die_with_parent():
        raise OSError(errno, "asking to die with the parent")


def setup():
    """Send libbpf's messages to descriptor 2."""
    libbpf_set_print(skep_log_print)


def knows_section(str section):
    """Whether libbpf gives programs of this section a type by itself."""
    cdef int program_type, attach_type
    return skep_section(section.encode(), &program_type, &attach_type) == 0


def learn_section(str section, str like):
    """Have programs of a section, spelled exactly so, be of the type that those of section ``like`` are."""
    cdef int program_type, attach_type
    cdef int error = skep_section(like.encode(), &program_type, &attach_type)
    if not error:
        error = min(0, libbpf.libbpf_register_prog_handler(section.encode(), program_type, attach_type, NULL))
    if error:
        raise OSError(-error, f"registering section {section!r}")


def has_kprobe_multi():
    """Whether this kernel attaches kprobes by a multi link (Linux 5.18 with CONFIG_FPROBE)."""
    cdef libbpf.bpf_prog_load_opts load
    cdef libbpf.bpf_link_create_opts link
    cdef int program, fd
    memset(&load, 0, sizeof(load))
    memset(&link, 0, sizeof(link))
    load.sz = sizeof(load)
    link.sz = sizeof(link)
    load.expected_attach_type = KPROBE_MULTI
    program = libbpf.bpf_prog_load(libbpf.BPF_PROG_TYPE_KPROBE, NULL, b"GPL", skep_nothing, 2, &load)
    if program < 0:
        return False
    # To no function: a kernel that can finds the arguments invalid, one built without says that it cannot.
    fd = libbpf.bpf_link_create(program, 0, KPROBE_MULTI, &link)
    skep_close(program)
    if fd >= 0:
        skep_close(fd)
    return fd == -EINVAL


def attach_perf_event(int program_fd, int perf_fd):
    """Run a program at each sample of a perf event; the event's descriptor is taken.

    Returns:
        What keeps it attached: a link, or before Linux 5.15 the event itself.
    """
    cdef int fd = libbpf.bpf_link_create(program_fd, perf_fd, libbpf.BPF_PERF_EVENT, NULL)
    if fd >= 0:
        skep_close(perf_fd)
        return fd
    if not skep_perf_event_set_bpf(perf_fd, program_fd):
        return perf_fd
    number = errno
    skep_close(perf_fd)
    raise OSError(number, "attaching to the perf event")


def pinned_map(str path):
    """Type, key size, value size, entries and flags of a map in the BPF file system."""
    cdef libbpf.bpf_map_info info
    cdef uint32_t size = sizeof(info)
    cdef int fd = libbpf.bpf_obj_get(path.encode())
    if fd < 0:
        raise OSError(-fd, f"opening the pinned map {path!r}")
    memset(&info, 0, sizeof(info))
    error = libbpf.bpf_map_get_info_by_fd(fd, &info, &size)
    skep_close(fd)
    if error:
        raise OSError(-error, f"{path!r} is no map")
    return {
        "type": info.type, "key_size": info.key_size, "value_size": info.value_size,
        "max_entries": info.max_entries, "flags": info.map_flags,
    }


def kernel_types(names):
    """Those of ``(kind, name)`` that the kernel's own BTF has, kind ``function`` or ``typedef``."""
    cdef libbpf.btf *types = libbpf.btf__load_vmlinux_btf()
    kinds = {"function": libbpf.BTF_KIND_FUNC, "typedef": libbpf.BTF_KIND_TYPEDEF}
    if types == NULL:
        raise OSError(errno, "reading the kernel's BTF")
    try:
        return {
            (kind, name) for kind, name in names
            if libbpf.btf__find_by_name_kind(types, name.encode(), kinds[kind]) > 0
        }
    finally:
        libbpf.btf__free(types)


def kernel_enums(names, str types_path=""):
    """The enumerators of the running kernel's enums; ``{}`` for one it does not have.

    From its own BTF, or if there is a path from that file.
    """
    cdef libbpf.btf *types
    cdef const libbpf.btf_type *enum
    cdef libbpf.small_enumerator *small
    cdef libbpf.large_enumerator *large
    cdef int32_t type_id
    cdef uint16_t i
    found = {name: {} for name in names}
    if not found:
        return found
    path = types_path.encode()
    if types_path:
        types = libbpf.btf__parse(path, NULL)
    else:
        types = libbpf.btf__load_vmlinux_btf()
    if types == NULL:
        raise OSError(errno, "reading the kernel's BTF")
    try:
        for name, values in found.items():
            encoded = name.encode()
            type_id = libbpf.btf__find_by_name_kind(types, encoded, libbpf.BTF_KIND_ENUM)
            if type_id > 0:
                enum = libbpf.btf__type_by_id(types, type_id)
                small = libbpf.small_enumerators(enum)
                for i in range(libbpf.btf_vlen(enum)):
                    key = libbpf.btf__name_by_offset(types, small[i].name_off).decode()
                    # The kind flag of an enum says: signed (in BTF since Linux 6.0; before, all were).
                    values[key] = small[i].val if small[i].val >= 0 or libbpf.btf_kflag(enum) else small[i].val & 0xFFFFFFFF
                continue
            type_id = libbpf.btf__find_by_name_kind(types, encoded, libbpf.BTF_KIND_ENUM64)
            if type_id > 0:
                enum = libbpf.btf__type_by_id(types, type_id)
                large = libbpf.large_enumerators(enum)
                for i in range(libbpf.btf_vlen(enum)):
                    key = libbpf.btf__name_by_offset(types, large[i].name_off).decode()
                    value = libbpf.btf_enum64_value(&large[i])
                    values[key] = value - (1 << 64) if libbpf.btf_kflag(enum) and value >> 63 else value
    finally:
        libbpf.btf__free(types)
    return found


def open_perf_event(*, uint32_t type, uint64_t config, uint64_t sample, bint by_frequency, int pid, int cpu):
    """Open a sampling perf event on one CPU (-1 any) and return its descriptor."""
    cdef int fd = skep_perf_event(type, config, sample, by_frequency, pid, cpu)
    if fd < 0:
        raise OSError(errno, f"opening perf event type {type} config {config} on CPU {cpu}")
    return fd


cdef class Object:
    """A BPF object opened by libbpf; the image's bytes are borrowed until the end."""

    cdef libbpf.bpf_object *handle
    cdef Py_buffer image

    def __cinit__(self, image, str name, str types_path=""):
        """``types_path``: a file with the kernel's BTF, for one that does not show its own; serves CO-RE only."""
        cdef libbpf.bpf_object_open_opts opts
        encoded, path = name.encode(), types_path.encode()
        PyObject_GetBuffer(image, &self.image, PyBUF_SIMPLE)
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.object_name = encoded
        if types_path:
            opts.btf_custom_path = path
        self.handle = libbpf.bpf_object__open_mem(self.image.buf, <size_t>self.image.len, &opts)
        if self.handle == NULL:
            raise OSError(errno, "opening the object")

    def __dealloc__(self):
        if self.handle != NULL:
            libbpf.bpf_object__close(self.handle)
        PyBuffer_Release(&self.image)

    def programs(self):
        """Every program, in libbpf's order."""
        cdef libbpf.bpf_program *program = libbpf.bpf_object__next_program(self.handle, NULL)
        result = []
        while program != NULL:
            result.append(_program(self, program))
            program = libbpf.bpf_object__next_program(self.handle, program)
        return result

    def maps(self):
        """Every map that the source declares; those libbpf makes for global variables are left out."""
        cdef libbpf.bpf_map *map = libbpf.bpf_object__next_map(self.handle, NULL)
        result = []
        while map != NULL:
            if not libbpf.bpf_map__is_internal(map):
                result.append(_map(self, map))
            map = libbpf.bpf_object__next_map(self.handle, map)
        return result

    def section_map(self, str section):
        """The map libbpf makes for a section of global variables, or None: it knows no such section."""
        cdef libbpf.bpf_map *map = libbpf.bpf_object__find_map_by_name(self.handle, section.encode())
        if not section.startswith(".") or map == NULL or not libbpf.bpf_map__is_internal(map):
            return None
        return _map(self, map)

    def set_global(self, str section, uint64_t offset, bytes value):
        """Write a global variable's initial value; ``section`` is ``.rodata``, ``.data``, ``.bss`` or one of their kin."""
        cdef size_t size = 0
        cdef uint8_t *initial = NULL
        cdef const uint8_t *source = value
        cdef libbpf.bpf_map *map = libbpf.bpf_object__find_map_by_name(self.handle, section.encode())
        doing = f"writing {len(value)} bytes at offset {offset} of section {section!r}"
        if not section.startswith(".") or map == NULL or not libbpf.bpf_map__is_internal(map):
            raise OSError(ENOENT, doing)
        initial = <uint8_t *>libbpf.bpf_map__initial_value(map, &size)
        if initial == NULL or offset > size or <size_t>len(value) > size - offset:
            raise OSError(EINVAL, doing)
        memcpy(initial + offset, source, <size_t>len(value))

    def load(self):
        """Create the maps, relocate and load the programs."""
        cdef int error = libbpf.bpf_object__load(self.handle)
        if error:
            raise OSError(-error, "loading the object")


cdef class Program:
    """A program of an :class:`Object`; ``attach…`` methods return a descriptor, or None where libbpf shows none."""

    cdef Object owner
    cdef libbpf.bpf_program *handle

    @property
    def name(self):
        return _text(libbpf.bpf_program__name(self.handle))

    @property
    def section(self):
        return _text(libbpf.bpf_program__section_name(self.handle))

    @property
    def type(self):
        """The number of ``enum bpf_prog_type``."""
        return libbpf.bpf_program__type(self.handle)

    @property
    def fd(self):
        """Its descriptor once loaded, which stays ours."""
        cdef int fd = libbpf.bpf_program__fd(self.handle)
        if fd < 0:
            raise OSError(-fd, "asking for a program's descriptor")
        return fd

    def info(self):
        """The kernel's id of the loaded program, and its tag in hexadecimal."""
        cdef libbpf.bpf_prog_info info
        cdef uint32_t size = sizeof(info)
        cdef int error
        memset(&info, 0, sizeof(info))
        error = libbpf.bpf_prog_get_info_by_fd(self.fd, &info, &size)
        if error:
            raise OSError(-error, "reading a program's information")
        return info.id, bytes(info.tag[:8]).hex()

    def set_autoload(self, bint autoload):
        """Whether loading the object loads this program."""
        cdef int error = libbpf.bpf_program__set_autoload(self.handle, autoload)
        if error:
            raise OSError(-error, "choosing the programs to load")

    def set_target(self, str function):
        """Before load: the kernel function, hook or tracepoint a BTF-typed program attaches to."""
        cdef int error = libbpf.bpf_program__set_attach_target(self.handle, 0, function.encode())
        if error:
            raise OSError(-error, f"setting the attach target {function!r}")

    @property
    def attach_type(self):
        """The number of ``enum bpf_attach_type`` it is, or will be, loaded for."""
        return libbpf.bpf_program__expected_attach_type(self.handle)

    def set_attach_type(self, int attach_type):
        """Before load: what it will be attached as, a number of ``enum bpf_attach_type``."""
        cdef int error = libbpf.bpf_program__set_expected_attach_type(self.handle, attach_type)
        if error:
            raise OSError(-error, f"choosing attach type {attach_type}")

    def add_flags(self, uint32_t flags):
        """Before load: flags of BPF_PROG_LOAD beside those it has."""
        cdef int error = libbpf.bpf_program__set_flags(self.handle, libbpf.bpf_program__flags(self.handle) | flags)
        if error:
            raise OSError(-error, f"setting flags {flags}")

    def attach(self):
        """Attach as the section says."""
        return self._linked(
            f"attaching as section {self.section!r} says",
            libbpf.bpf_program__attach(self.handle),
        )

    def attach_cgroup(self, int cgroup_fd):
        return self._linked(
            "attaching to the cgroup",
            libbpf.bpf_program__attach_cgroup(self.handle, cgroup_fd),
        )

    def attach_kprobe(self, str function, *, size_t offset, bint retprobe):
        cdef libbpf.bpf_kprobe_opts opts
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.offset = offset
        opts.retprobe = retprobe
        encoded = function.encode()
        return self._linked(
            f"attaching to function {function!r}",
            libbpf.bpf_program__attach_kprobe_opts(self.handle, encoded, &opts),
        )

    def attach_kprobe_multi(self, str pattern, *, bint one, bint retprobe):
        """``one``: the pattern is the name of one function, else libbpf's pattern with ``*`` and ``?``."""
        cdef libbpf.bpf_kprobe_multi_opts opts
        cdef const char *symbols[1]
        cdef const char *function_pattern = NULL
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.retprobe = retprobe
        encoded = pattern.encode()
        if one:
            symbols[0] = encoded
            opts.syms = symbols
            opts.cnt = 1
        else:
            function_pattern = encoded
        return self._linked(
            f"attaching to {'function' if one else 'functions'} {pattern!r}",
            libbpf.bpf_program__attach_kprobe_multi_opts(self.handle, function_pattern, &opts),
        )

    def attach_uprobe(self, str binary, str symbol, *, size_t offset, bint retprobe, int pid):
        """``pid`` -1 is every process; an empty symbol makes ``offset`` one of the file."""
        cdef libbpf.bpf_uprobe_opts opts
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.retprobe = retprobe
        path, function = binary.encode(), symbol.encode()
        if symbol:
            opts.func_name = function
        return self._linked(
            f"attaching to symbol {symbol!r} of {binary!r}",
            libbpf.bpf_program__attach_uprobe_opts(self.handle, pid, path, offset, &opts),
        )

    def attach_uprobe_multi(self, str binary, str pattern, *, bint one, bint retprobe, int pid, size_t offset=0):
        """``one``: the pattern is the name of one symbol, else libbpf's pattern with ``*`` and ``?``.

        An offset in the file, unless it is 0, is where that one symbol is.
        """
        cdef libbpf.bpf_uprobe_multi_opts opts
        cdef const char *symbols[1]
        cdef unsigned long offsets[1]
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.retprobe = retprobe
        cdef const char *symbol_pattern = NULL
        path, encoded = binary.encode(), pattern.encode()
        if offset:
            offsets[0] = offset
            opts.offsets = offsets
            opts.cnt = 1
        elif one:
            symbols[0] = encoded
            opts.syms = symbols
            opts.cnt = 1
        else:
            symbol_pattern = encoded
        return self._linked(
            f"attaching to {'symbol' if one else 'symbols'} {pattern!r} of {binary!r}",
            libbpf.bpf_program__attach_uprobe_multi(self.handle, pid, path, symbol_pattern, &opts),
        )

    def attach_usdt(self, str binary, str provider, str name, *, int pid):
        path, first, second = binary.encode(), provider.encode(), name.encode()
        return self._linked(
            f"attaching to probe '{provider}:{name}' of {binary!r}",
            libbpf.bpf_program__attach_usdt(self.handle, pid, path, first, second, NULL),
        )

    def attach_tracepoint(self, str category, str name):
        first, second = category.encode(), name.encode()
        return self._linked(
            f"attaching to tracepoint '{category}/{name}'",
            libbpf.bpf_program__attach_tracepoint(self.handle, first, second),
        )

    def attach_raw_tracepoint(self, str name):
        encoded = name.encode()
        return self._linked(
            f"attaching to raw tracepoint {name!r}",
            libbpf.bpf_program__attach_raw_tracepoint(self.handle, encoded),
        )

    def attach_netns(self, int netns_fd):
        return self._linked(
            "attaching to the network namespace",
            libbpf.bpf_program__attach_netns(self.handle, netns_fd),
        )

    def attach_link(self, str doing, int target, int attach_type, *, uint32_t flags=0, netfilter=None):
        """Make a link to ``target`` (an interface's index), or ``netfilter``: family, hook and priority."""
        cdef libbpf.bpf_link_create_opts opts
        cdef int fd
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.flags = flags
        if netfilter is not None:
            skep_netfilter(&opts, netfilter[0], netfilter[1], netfilter[2])
        fd = libbpf.bpf_link_create(self.fd, target, attach_type, &opts)
        if fd < 0:
            raise OSError(-fd, doing)
        return fd

    cdef object _linked(self, str doing, libbpf.bpf_link *link):
        # In this order: what is being done is put together before the call that sets errno.
        cdef int fd
        if link == NULL:
            raise OSError(errno, doing)
        # The number only: the link itself is never destroyed, see above. A composite
        # link (USDT) has no descriptor of its own, for which libbpf says 0, and does not
        # show its parts'. The first three are the loader's and never a link.
        fd = libbpf.bpf_link__fd(link)
        if fd < 3:
            return None
        fd = skep_duplicate(fd)
        if fd < 0:
            raise OSError(errno, "duplicating a link's descriptor")
        return fd


cdef Program _program(Object owner, libbpf.bpf_program *handle):
    cdef Program program = Program.__new__(Program)
    program.owner = owner
    program.handle = handle
    return program


cdef class Map:
    """A map of an :class:`Object`."""

    cdef Object owner
    cdef libbpf.bpf_map *handle

    @property
    def name(self):
        """As the source names it, however long."""
        return _text(libbpf.bpf_map__name(self.handle))

    @property
    def type(self):
        """The number of ``enum bpf_map_type``."""
        return libbpf.bpf_map__type(self.handle)

    @property
    def key_size(self):
        return libbpf.bpf_map__key_size(self.handle)

    @property
    def value_size(self):
        return libbpf.bpf_map__value_size(self.handle)

    @property
    def max_entries(self):
        return libbpf.bpf_map__max_entries(self.handle)

    @property
    def fd(self):
        """Its descriptor once created, which stays ours."""
        cdef int fd = libbpf.bpf_map__fd(self.handle)
        if fd < 0:
            raise OSError(-fd, "asking for a map's descriptor")
        return fd

    def clear_sizes(self):
        """Before load: no key and no value, as a ring buffer must be created; of a perf event array, descriptors."""
        cdef uint32_t size = 4 if <int>libbpf.bpf_map__type(self.handle) == _PERF_EVENT_ARRAY else 0
        cdef int error = libbpf.bpf_map__set_value_size(self.handle, size)
        if not error:
            error = libbpf.bpf_map__set_key_size(self.handle, size)
        if error:
            raise OSError(-error, "clearing a map's value size")

    def set_max_entries(self, uint32_t max_entries):
        cdef int error = libbpf.bpf_map__set_max_entries(self.handle, max_entries)
        if error:
            raise OSError(-error, f"setting a map's max_entries to {max_entries}")

    def set_value_size(self, uint32_t size):
        cdef int error = libbpf.bpf_map__set_value_size(self.handle, size)
        if error:
            raise OSError(-error, f"setting a map's value size to {size}")

    def leave_out(self):
        """Before load: do not create it; programs that use it will not load."""
        cdef int error = libbpf.bpf_map__set_autocreate(self.handle, False)
        if error:
            raise OSError(-error, "leaving a map out")

    @property
    def flags(self):
        return libbpf.bpf_map__map_flags(self.handle)

    def set_pin(self, str path):
        """Before load: share it through the BPF file system, or with ``""`` do not, whatever the object says."""
        encoded = path.encode()
        cdef const char *where = NULL
        if path:
            where = encoded
        cdef int error = libbpf.bpf_map__set_pin_path(self.handle, where)
        if error:
            raise OSError(-error, f"setting a map's pin path to {path!r}")


cdef Map _map(Object owner, libbpf.bpf_map *handle):
    cdef Map map = Map.__new__(Map)
    map.owner = owner
    map.handle = handle
    return map


# ---- What this kernel does, by trying it: for `skep doctor`, in a process of its own ----

cdef extern from *:
    """
    #include <bpf/bpf.h>
    #include <bpf/libbpf.h>

    /* The least program there is, of a type that attaches to a kernel function or tracepoint by its BTF, or to many. */
    static int skep_try_load(int type, int attach_type, const char *target, char *log, size_t log_size)
    {
        struct bpf_insn insns[] = {
            { .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0 },
            { .code = BPF_JMP | BPF_EXIT },
        };
        LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = (enum bpf_attach_type)attach_type);

        log[0] = 0;
        if (target) {
            int id = libbpf_find_vmlinux_btf_id(target, (enum bpf_attach_type)attach_type);

            if (id < 0)
                return id;
            opts.attach_btf_id = id;
            opts.log_buf = log;
            opts.log_size = log_size;
            opts.log_level = 1;
        }
        return bpf_prog_load((enum bpf_prog_type)type, "skep_doctor", "GPL", insns, 2, &opts);
    }

    static int skep_try_kprobe_multi(int fd, const char *function)
    {
        LIBBPF_OPTS(bpf_link_create_opts, opts, .kprobe_multi.syms = &function, .kprobe_multi.cnt = 1);

        return bpf_link_create(fd, 0, (enum bpf_attach_type)42 /* BPF_TRACE_KPROBE_MULTI */, &opts);
    }

    /* libbpf's own question: a kernel that knows the link looks at the path, which cannot be probed. */
    static int skep_try_uprobe_multi(int fd)
    {
        unsigned long offset = 0;
        LIBBPF_OPTS(bpf_link_create_opts, opts, .uprobe_multi.path = "/", .uprobe_multi.offsets = &offset,
                    .uprobe_multi.cnt = 1);

        return bpf_link_create(fd, -1, (enum bpf_attach_type)48 /* BPF_TRACE_UPROBE_MULTI */, &opts);
    }

    static int skep_try_perf(unsigned type, unsigned long long config, const char *text, unsigned long long offset,
                             int pid, int cpu)
    {
        struct perf_event_attr attr = {
            .type = type, .size = sizeof(attr), .config = config, .disabled = 1,
        };
        int fd;

        if (text) {
            attr.config1 = (unsigned long)text;
            attr.config2 = offset;
        } else {
            attr.sample_period = 1000000000;
        }
        fd = syscall(__NR_perf_event_open, &attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
        return fd < 0 ? -errno : fd;
    }
    """
    int skep_try_load(int type, int attach_type, const char *target, char *log, size_t log_size) nogil
    int skep_try_kprobe_multi(int fd, const char *function) nogil
    int skep_try_uprobe_multi(int fd) nogil
    int skep_try_perf(unsigned int type, unsigned long long config, const char *text, unsigned long long offset,
                      int pid, int cpu) nogil
    int libbpf_probe_bpf_prog_type(int type, const void *opts) nogil
    int libbpf_probe_bpf_map_type(int type, const void *opts) nogil
    int libbpf_probe_bpf_helper(int type, int helper, const void *opts) nogil
    int bpf_raw_tracepoint_open(const char *name, int program_fd) nogil


def be_quiet():
    """Let libbpf say nothing: a kernel that refuses what is only tried is no news."""
    libbpf_set_print(NULL)


def probe_program_type(int type):
    """Whether the kernel loads programs of a type: 1, 0, or a negative errno where that cannot be told."""
    cdef int found
    with nogil:
        found = libbpf_probe_bpf_prog_type(type, NULL)
    return found


def probe_map_type(int type):
    """Whether the kernel makes maps of a type: 1, 0, or a negative errno where that cannot be told."""
    cdef int found
    with nogil:
        found = libbpf_probe_bpf_map_type(type, NULL)
    return found


def probe_helper(int type, int helper):
    """Whether programs of a type may call a helper: 1, 0, or a negative errno where that cannot be told."""
    cdef int found
    with nogil:
        found = libbpf_probe_bpf_helper(type, helper, NULL)
    return found


def try_load(int type, int attach_type, str target):
    """Load the least program of a type and return its descriptor; a ``target`` is found in the kernel's BTF."""
    cdef char log[4096]
    cdef const char *name = NULL
    cdef int fd
    if target:
        encoded = target.encode()
        name = encoded
    with nogil:
        fd = skep_try_load(type, attach_type, name, log, sizeof(log))
    if fd < 0:
        raise OSError(-fd, "loading", _text(log))
    return fd


def try_raw_tracepoint(str name, int program_fd):
    """Attach to a raw tracepoint, or without a name to what the program was loaded for; return the descriptor."""
    cdef const char *text = NULL
    cdef int fd
    if name:
        encoded = name.encode()
        text = encoded
    with nogil:
        fd = bpf_raw_tracepoint_open(text, program_fd)
    if fd < 0:
        raise OSError(-fd, "attaching")
    return fd


def try_kprobe_multi(int program_fd, str function):
    """Attach to one function through the multi link; return the descriptor."""
    encoded = function.encode()
    cdef int fd = skep_try_kprobe_multi(program_fd, encoded)
    if fd < 0:
        raise OSError(-fd, "attaching")
    return fd


def try_uprobe_multi(int program_fd):
    """The errno of a multi link to what cannot be probed: EBADF where the kernel has such links."""
    return -skep_try_uprobe_multi(program_fd)


def try_perf_event(unsigned int type, unsigned long long config, str text, unsigned long long offset, int pid, int cpu):
    """Open a perf event that counts nothing yet; ``text`` is a probe's function or file. Return the descriptor."""
    cdef const char *words = NULL
    cdef int fd
    if text:
        encoded = text.encode()
        words = encoded
    with nogil:
        fd = skep_try_perf(type, config, words, offset, pid, cpu)
    if fd < 0:
        raise OSError(-fd, "opening the event")
    return fd
