/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * One map for each kind of type that a key or value can have, written by the
 * compiler's own idea of where things lie; tests/golden/kinds.txt has what is shown.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define TAG(text) __attribute__((btf_decl_tag("skep:" text)))
#define TABLE(name, key_type, value_type)                \
	struct {                                         \
		__uint(type, BPF_MAP_TYPE_HASH);         \
		__uint(max_entries, 8);                  \
		__type(key, key_type);                   \
		__type(value, value_type);               \
	} name SEC(".maps")

char LICENSE[] SEC("license") = "Dual BSD/GPL";
const volatile __u32 tgid;

/* INT, signed and not, of every width; bool and char. */
struct ints {
	__u8 u8; __s8 s8; __u16 u16; __s16 s16; __u32 u32; __s32 s32; __u64 u64; __s64 s64;
	_Bool yes, no; char letter;
	unsigned __int128 wide; __int128 deep;
};
TABLE(counter_ints, struct ints, __u64);

/* Bit-fields, over the edges of bytes and words. */
struct bits {
	__u32 low : 3, over : 7, rest : 22;
	__s32 negative : 5, last : 27;
	__u64 long_one : 41, long_two : 23;
	_Bool flag : 1;
	__u8 : 3;
	__u8 behind : 4;
};
TABLE(counter_bits, struct bits, __u64);

/* FLOAT: as bits, since a BPF program cannot count with them. */
struct floats { float single; double twice; };
TABLE(counter_floats, struct floats, __u64);

/* ENUM, by its names and as flags. */
enum mode { MODE_NONE, MODE_READ = 1, MODE_WRITE = 2, MODE_SYNC = 16 };
enum level { LEVEL_LOW = -2, LEVEL_HIGH = 3 };
struct enums {
	enum mode mode; enum level level; enum mode unknown;
	enum mode set TAG("decode=flags"); enum mode more TAG("decode=flags");
	__u8 number TAG("decode=enum(mode)");
};
TABLE(counter_enums, struct enums, __u64);

/* PTR, ARRAY of anything, STRUCT in STRUCT, with CONST, VOLATILE, RESTRICT and TYPEDEF on the way. */
typedef __u16 port_list[2];
typedef const volatile __u32 steady;
typedef __u32 ipv4_addr;
struct opaque;
struct inner { __u8 a; __u64 b; };
struct arrays {
	struct opaque *pointer; const char *restrict text;
	char name[8]; unsigned char raw[4]; __s32 list[3]; __u8 grid[2][2] TAG("decode=bytes");
	port_list ports; steady steady[2]; enum mode modes[2]; _Bool bools[2]; ipv4_addr hops[2];
	struct inner pair[2];
	struct { __u16 hidden; struct { __u16 deeper; } inside; };
};
TABLE(counter_arrays, struct arrays, __u64);

/* UNION, by its tag, by what its members say, and by nothing. */
struct unions {
	__u16 family;
	union {
		__u32 v4 TAG("label=peer:ipv4") TAG("case=2");
		__u8 v6[16] TAG("label=peer:ip") TAG("case=10");
		__u64 other TAG("case=*");
	} address TAG("union=family");
	union { __u32 said TAG("label=said:hex"); __u8 bytes[4]; } some;
	union { __u16 both; __u8 each[2]; };
};
TABLE(counter_unions, struct unions, __u64);

/* Padding: the compiler's, and none at all. */
struct packed { __u8 a; __u32 b; __u16 c; __u64 d; } __attribute__((packed));
TABLE(counter_packed, struct packed, __u64);

/* Values. */
struct values {
	__u8 small; __s16 below; _Bool up; float load; struct { __u32 nested; } in;
	__u64 each[3] TAG("index=mode:enum(mode)");
	struct { __u32 calls; __u64 bytes; } cpu[2] TAG("index=cpu");
	__u32 bits : 6, others : 26;
	void *pointer; unsigned __int128 wide; char text[4];
};
TABLE(gauge_values, __u32, struct values);

#define PUT(map, key, value) bpf_map_update_elem(&map, &(key), &(value), BPF_ANY)

SEC("raw_tp/sys_enter")
int on_enter(void *context)
{
	__u64 one = 1;
	__u32 zero = 0, half = 0x3f000000 /* 0.5f */;
	__u64 pi = 0x400921fb54442d18;

	if (bpf_get_current_pid_tgid() >> 32 != tgid)
		return 0;

	struct ints ints;
	__builtin_memset(&ints, 0, sizeof(ints));
	ints.u8 = 255; ints.s8 = -128; ints.u16 = 65535; ints.s16 = -32768; ints.u32 = 4294967295; ints.s32 = -2147483647 - 1;
	ints.u64 = ~0ull; ints.s64 = -1; ints.yes = 1; ints.letter = 'A';
	ints.wide = (unsigned __int128)1 << 100; ints.deep = -(__int128)1;
	PUT(counter_ints, ints, one);

	struct bits bits;
	__builtin_memset(&bits, 0, sizeof(bits));
	bits.low = 5; bits.over = 100; bits.rest = 4000000; bits.negative = -7; bits.last = -2;
	bits.long_one = 1ull << 40; bits.long_two = 8388607; bits.flag = 1; bits.behind = 9;
	PUT(counter_bits, bits, one);

	struct floats floats;
	__builtin_memset(&floats, 0, sizeof(floats));
	__builtin_memcpy(&floats.single, &half, sizeof(half));
	__builtin_memcpy(&floats.twice, &pi, sizeof(pi));
	PUT(counter_floats, floats, one);

	struct enums enums;
	__builtin_memset(&enums, 0, sizeof(enums));
	enums.mode = MODE_WRITE; enums.level = LEVEL_LOW; enums.unknown = 77;
	enums.set = MODE_READ | MODE_SYNC; enums.more = MODE_READ | 64; enums.number = 1;
	PUT(counter_enums, enums, one);

	struct arrays arrays;
	__builtin_memset(&arrays, 0, sizeof(arrays));
	arrays.pointer = (void *)0xffff888012345678;
	__builtin_memcpy(arrays.name, "ab\0cd", 6);
	arrays.raw[0] = 0xde; arrays.raw[3] = 0xad; arrays.list[0] = 1; arrays.list[1] = -2; arrays.list[2] = 3;
	arrays.grid[0][1] = 1; arrays.grid[1][0] = 2; arrays.ports[0] = 80; arrays.ports[1] = 443;
	*(__u32 *)&arrays.steady[0] = 7; *(__u32 *)&arrays.steady[1] = 8;
	arrays.modes[0] = MODE_SYNC; arrays.modes[1] = 5; arrays.bools[1] = 1;
	arrays.hops[0] = 0x0100000a; arrays.hops[1] = 0x0200000a;
	arrays.pair[0].a = 1; arrays.pair[0].b = 2; arrays.pair[1].a = 3; arrays.pair[1].b = 1ull << 33;
	arrays.hidden = 4; arrays.inside.deeper = 5;
	PUT(counter_arrays, arrays, one);

	struct unions unions;
	__builtin_memset(&unions, 0, sizeof(unions));
	unions.family = 2; unions.address.v4 = 0x0100000a; unions.some.said = 0xabc; unions.both = 0x0102;
	PUT(counter_unions, unions, one);
	unions.family = 10; unions.address.v6[0] = 0x20; unions.address.v6[1] = 1; unions.address.v6[2] = 0; unions.address.v6[15] = 1;
	unions.address.v6[3] = 0;
	PUT(counter_unions, unions, one);
	unions.family = 1;
	__builtin_memset(&unions.address, 0, sizeof(unions.address));
	unions.address.other = 99;
	PUT(counter_unions, unions, one);

	struct packed packed;
	__builtin_memset(&packed, 0, sizeof(packed));
	packed.a = 1; packed.b = 0x01020304; packed.c = 5; packed.d = 1ull << 60;
	PUT(counter_packed, packed, one);

	struct values values;
	__builtin_memset(&values, 0, sizeof(values));
	values.small = 200; values.below = -3; values.up = 1; values.in.nested = 17;
	__builtin_memcpy(&values.load, &half, sizeof(half));
	values.each[0] = 10; values.each[2] = 30;
	values.cpu[0].calls = 1; values.cpu[0].bytes = 2; values.cpu[1].calls = 3; values.cpu[1].bytes = 4;
	values.bits = 33; values.others = 1000;
	PUT(gauge_values, zero, values);
	return 0;
}
