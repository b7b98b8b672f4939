# SPDX-License-Identifier: Apache-2.0
# What skep uses of libbpf (1.4 and later), and nothing else of it.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<linux/bpf.h>" nogil:
    enum:
        BPF_PROG_TYPE_KPROBE
        BPF_PERF_EVENT
    struct bpf_insn:
        uint8_t code
    struct bpf_map_info:
        uint32_t type
        uint32_t key_size
        uint32_t value_size
        uint32_t max_entries
        uint32_t map_flags
    struct bpf_prog_info:
        uint32_t id
        uint8_t tag[8]

cdef extern from "<linux/btf.h>" nogil:
    enum:
        BTF_KIND_ENUM
        BTF_KIND_ENUM64
        BTF_KIND_FUNC
        BTF_KIND_TYPEDEF
    struct btf_type:
        uint32_t name_off
        uint32_t info
    # The header gives a struct and a function one name; Cython cannot.
    struct small_enumerator "btf_enum":
        uint32_t name_off
        int32_t val
    struct large_enumerator "btf_enum64":
        uint32_t name_off
        uint32_t val_lo32
        uint32_t val_hi32

cdef extern from "<bpf/libbpf.h>" nogil:
    struct bpf_object:
        pass
    struct bpf_program:
        pass
    struct bpf_map:
        pass
    struct bpf_link:
        pass
    ctypedef int (*libbpf_print_fn_t)(int level, const char *format, ...)

    struct bpf_object_open_opts:
        size_t sz
        const char *object_name
        const char *btf_custom_path
    struct bpf_kprobe_opts:
        size_t sz
        size_t offset
        bint retprobe
    struct bpf_kprobe_multi_opts:
        size_t sz
        const char **syms
        size_t cnt
        bint retprobe
    struct bpf_uprobe_opts:
        size_t sz
        bint retprobe
        const char *func_name
    struct bpf_uprobe_multi_opts:
        size_t sz
        const char **syms
        const unsigned long *offsets
        size_t cnt
        bint retprobe

    const char *libbpf_version_string()
    int libbpf_register_prog_handler(const char *section, int prog_type, int attach_type, const void *opts)

    bpf_object *bpf_object__open_mem(const void *data, size_t size, const bpf_object_open_opts *opts)
    int bpf_object__load(bpf_object *obj)
    void bpf_object__close(bpf_object *obj)
    bpf_program *bpf_object__next_program(const bpf_object *obj, bpf_program *previous)
    bpf_map *bpf_object__next_map(const bpf_object *obj, const bpf_map *previous)
    bpf_map *bpf_object__find_map_by_name(const bpf_object *obj, const char *name)

    const char *bpf_program__name(const bpf_program *program)
    const char *bpf_program__section_name(const bpf_program *program)
    int bpf_program__set_autoload(bpf_program *program, bint autoload)
    int bpf_program__set_attach_target(bpf_program *program, int program_fd, const char *function)
    int bpf_program__set_expected_attach_type(bpf_program *program, int attach_type)
    int bpf_program__set_flags(bpf_program *program, uint32_t flags)
    uint32_t bpf_program__flags(const bpf_program *program)
    int bpf_program__expected_attach_type(const bpf_program *program)
    int bpf_program__type(const bpf_program *program)
    int bpf_program__fd(const bpf_program *program)

    bpf_link *bpf_program__attach(const bpf_program *program)
    bpf_link *bpf_program__attach_cgroup(const bpf_program *program, int cgroup_fd)
    bpf_link *bpf_program__attach_kprobe_opts(const bpf_program *program, const char *function,
                                              const bpf_kprobe_opts *opts)
    bpf_link *bpf_program__attach_kprobe_multi_opts(const bpf_program *program, const char *pattern,
                                                    const bpf_kprobe_multi_opts *opts)
    bpf_link *bpf_program__attach_netns(const bpf_program *program, int netns_fd)
    bpf_link *bpf_program__attach_raw_tracepoint(const bpf_program *program, const char *name)
    bpf_link *bpf_program__attach_tracepoint(const bpf_program *program, const char *category, const char *name)
    bpf_link *bpf_program__attach_uprobe_opts(const bpf_program *program, int pid, const char *binary,
                                              size_t offset, const bpf_uprobe_opts *opts)
    bpf_link *bpf_program__attach_uprobe_multi(const bpf_program *program, int pid, const char *binary,
                                               const char *pattern, const bpf_uprobe_multi_opts *opts)
    bpf_link *bpf_program__attach_usdt(const bpf_program *program, int pid, const char *binary,
                                       const char *provider, const char *name, const void *opts)
    int bpf_link__fd(const bpf_link *link)
    void bpf_link__disconnect(bpf_link *link)
    int bpf_link__destroy(bpf_link *link)

    const char *bpf_map__name(const bpf_map *map)
    int bpf_map__type(const bpf_map *map)
    uint32_t bpf_map__key_size(const bpf_map *map)
    uint32_t bpf_map__value_size(const bpf_map *map)
    uint32_t bpf_map__max_entries(const bpf_map *map)
    bint bpf_map__is_internal(const bpf_map *map)
    int bpf_map__set_key_size(bpf_map *map, uint32_t size)
    int bpf_map__set_value_size(bpf_map *map, uint32_t size)
    int bpf_map__set_max_entries(bpf_map *map, uint32_t max_entries)
    uint32_t bpf_map__map_flags(const bpf_map *map)
    int bpf_map__set_autocreate(bpf_map *map, bint autocreate)
    int bpf_map__set_pin_path(bpf_map *map, const char *path)
    void *bpf_map__initial_value(const bpf_map *map, size_t *size)
    int bpf_map__fd(const bpf_map *map)

cdef extern from "<bpf/bpf.h>" nogil:
    struct bpf_link_create_opts:
        size_t sz
        uint32_t flags
    struct bpf_prog_load_opts:
        size_t sz
        int expected_attach_type
    int bpf_prog_load(int prog_type, const char *name, const char *license, const bpf_insn *insns, size_t count,
                      bpf_prog_load_opts *opts)
    int bpf_obj_get(const char *path)
    int bpf_map_get_info_by_fd(int map_fd, bpf_map_info *info, uint32_t *size)
    int bpf_link_create(int program_fd, int target_fd, int attach_type, const bpf_link_create_opts *opts)
    int bpf_prog_get_info_by_fd(int program_fd, bpf_prog_info *info, uint32_t *size)

cdef extern from "<bpf/btf.h>" nogil:
    struct btf:
        pass
    btf *btf__load_vmlinux_btf()
    btf *btf__parse(const char *path, void *ext)
    void btf__free(btf *types)
    int32_t btf__find_by_name_kind(const btf *types, const char *name, uint32_t kind)
    const btf_type *btf__type_by_id(const btf *types, uint32_t id)
    const char *btf__name_by_offset(const btf *types, uint32_t offset)
    small_enumerator *small_enumerators "btf_enum"(const btf_type *type)
    large_enumerator *large_enumerators "btf_enum64"(const btf_type *type)
    uint64_t btf_enum64_value(const large_enumerator *value)
    bint btf_kflag(const btf_type *type)
    uint16_t btf_vlen(const btf_type *type)
