/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few things that are used of the kernel's BPF interface
 * (include/uapi/linux/bpf.h), so that the build needs no headers but ours.
 */
#ifndef HELPERS_H
#define HELPERS_H

#define SEC(name) __attribute__((section(name), used))
#define __noinline __attribute__((noinline))
#define __always_inline inline __attribute__((always_inline))
/*
 * A function that is not static is verified once, by itself, and not again for
 * every path that leads to it: loading takes milliseconds instead of seconds.
 * The price is that it knows nothing of its arguments, not even that a pointer
 * is none that is NULL.
 *
 * FLAT programs have no functions: the compilers of 32-bit kernels and of MIPS do
 * not take them, and to have programs interpreted costs many times more.
 */
#ifdef FLAT
#define FUNC static __always_inline
#define STATIC_FUNC static __always_inline
#else
#define FUNC __noinline
#define STATIC_FUNC static __noinline
#endif
#define GUARD(ptr)                                                          \
	if (!(ptr))                                                         \
		return 0

/* Some loops the compiler lays out so that older verifiers do not take them. */
#define UNROLL _Pragma("clang loop unroll(full)")

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PROG_ARRAY = 3, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_QUEUE = 22, BPF_MAP_TYPE_RINGBUF = 27 };

#define BPF_ANY 0
#define BPF_F_NO_PREALLOC 1
#define BPF_F_MMAPABLE 1024
#define BPF_RB_NO_WAKEUP 1
#define BPF_RB_FORCE_WAKEUP 2

struct bpf_raw_tracepoint_args {
	u64 args[0];
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u32 (*bpf_get_smp_processor_id)(void) = (void *)8;
static long (*bpf_tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*bpf_probe_read_user)(void *dst, u32 size, const void *from) = (void *)112;
static long (*bpf_probe_read_kernel)(void *dst, u32 size, const void *from) = (void *)113;
static long (*bpf_probe_read_user_str)(void *dst, u32 size, const void *from) = (void *)114;
static long (*bpf_probe_read_kernel_str)(void *dst, u32 size, const void *from) = (void *)115;
static u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*bpf_map_push_elem)(void *map, const void *value, u64 flags) = (void *)87;
static long (*bpf_map_pop_elem)(void *map, void *value) = (void *)88;
static long (*bpf_ringbuf_output)(void *map, void *data, u64 size, u64 flags) = (void *)130;
static u64 (*bpf_get_current_task)(void) = (void *)35;
/* The results of these two may be read like memory of ours. */
static void *(*bpf_get_current_task_btf)(void) = (void *)158;
static void *(*bpf_task_pt_regs)(void *task) = (void *)175;
static long (*bpf_find_vma)(void *task, u64 addr, void *found, void *ctx, u64 flags) = (void *)180;

#endif
