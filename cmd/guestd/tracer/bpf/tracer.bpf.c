//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Petri's tracer: one record per system call of the sample's process tree.
 *
 * A record is built in the task's own buffer: what the arguments point to is
 * read when the call begins, so that another thread cannot change it afterwards,
 * and what the kernel writes when it returns. Then the record goes into the ring
 * in one copy. Whose calls are recorded is decided here, in the kernel: a
 * process becomes tracked when a child of an armed thread executes a program,
 * and so do its descendants, at their fork.
 *
 * There is no BTF of the kernel at run time: where its structures' fields lie
 * is configuration, made when the guest's image was built, or found out before
 * (calibrate.bpf.c).
 *
 * The same source serves kernels of either byte order, and with LONG32 those
 * whose long has 32 bits.
 */
#include "record.h"
#include "helpers.h"
#include "sysno.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ENOENT 2
#define EBADF 9
#define EFAULT 14
#define PAGE 4096 /* or a part of one */
#define MAX_SPECS 2048
#define PF_IO_WORKER 0x00000010
#define PF_KTHREAD 0x00200000
#define SIGNAL_GROUP_EXIT 4
#define PR_SET_NAME 15
#define X32_BIT 0x40000000u
#define BUFFER 256 /* bytes of a buffer */
#define SOCKADDR 128

volatile const struct config cfg;
volatile const struct table native, compat;
volatile const struct spec specs[MAX_SPECS];

struct control ctl SEC(".data.ctl");

/*
 * The state of tracked tasks. The first SLOTS of them, which is all but of a
 * fork bomb, have a slot; others share a hash table, which is slower.
 */
#define SLOTS 256
#define DIRECT 65536 /* tids that can have a slot; pid_max is 32768 by default */
#define IN_HASH 0xffff

u16 slot_of[DIRECT]; /* slot + 1, IN_HASH, or 0: not tracked */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct task);
} slots SEC(".maps");

/* Slots that were used and are free. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, SLOTS);
	__uint(key_size, 0);
	__type(value, u32);
} free_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, u32);
	__type(value, struct task);
} tasks SEC(".maps");

/* Children of armed threads that have not executed anything yet. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u32);
} armed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct task);
} blank SEC(".maps");

/* For records that are no system call's, which may happen within one. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct task);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} ring SEC(".maps");

#define inline_ static __always_inline

/* rd64 reads a field of the kernel's. */
FUNC u64 rd64(u64 addr)
{
	u64 v = 0;
	bpf_probe_read_kernel(&v, sizeof(v), (void *)addr);
	return v;
}

/* rdp reads a pointer or long of the kernel's. */
FUNC u64 rdp(u64 addr)
{
	klong v = 0;
	bpf_probe_read_kernel(&v, sizeof(v), (void *)addr);
	return v;
}

FUNC u32 rd32(u64 addr)
{
	u32 v = 0;
	bpf_probe_read_kernel(&v, sizeof(v), (void *)addr);
	return v;
}

inline_ u32 current_tid(void) { return (u32)bpf_get_current_pid_tgid(); }

/* slot_at is where the slot of a tid below DIRECT is. The compiler would leave
 * out the bound that the verifier wants to see. */
inline_ u16 *slot_at(u32 tid)
{
	u64 i = tid;

	asm volatile("%0 &= %1" : "+r"(i) : "i"(DIRECT - 1));
	return &slot_of[i];
}

/* find returns the state of a task, NULL if it is not tracked. */
inline_ struct task *find(u32 tid)
{
	u32 slot = IN_HASH;

	if (tid < DIRECT)
		slot = *slot_at(tid);
	if (slot == 0)
		return 0;
	if (slot == IN_HASH)
		return bpf_map_lookup_elem(&tasks, &tid);
	slot--;
	return bpf_map_lookup_elem(&slots, &slot);
}

inline_ struct cpu_stats *stats(void)
{
	return &ctl.cpu[cfg.batch ? 0 : bpf_get_smp_processor_id() & (MAX_CPUS - 1)];
}

/*
 * On a guest of one CPU small records gather here before they go into the ring
 * together, at the latest when guestd asks for it: the ring's lock costs as much
 * as all the rest. Several CPUs would get out of order.
 */
#define STAGE 8192
#define STAGED 512 /* the largest record that is small */

struct {
	u32 used, records;
	u8 data[STAGE];
} stage;

/* output puts bytes into the ring that are so many records. */
inline_ void output(void *data, u64 n, u32 records)
{
	struct cpu_stats *s = stats();
	u64 wake = BPF_RB_NO_WAKEUP;

	s->bytes += n;
	if (s->bytes > cfg.wake_bytes || ctl.asleep) {
		wake = BPF_RB_FORCE_WAKEUP;
		s->bytes = 0;
		ctl.asleep = 0;
	}
	if (bpf_ringbuf_output(&ring, data, n, wake))
		s->lost += records;
}

FUNC int unstage(void)
{
	u64 n = stage.used;

	asm volatile("" : "+r"(n)); /* one value, for the verifier */
	if (n > STAGE)
		n = STAGE;
	if (n)
		output(stage.data, n, stage.records);
	stage.used = 0;
	stage.records = 0;
	return 0;
}

/* put brings the task's record on its way; n is 1, or 0 if it does not count. */
FUNC int put(struct task *t, u32 count)
{
	u32 n, at, i;
	u64 *from, *to;

	GUARD(t);
	n = t->length;
	if (n > AREA)
		n = AREA;
	n += sizeof(struct record);
	t->rec.length = n;
	if (cfg.batch) {
		if (stage.used > STAGE - STAGED || n > STAGED)
			unstage();
		at = stage.used & (STAGE - 8); /* a multiple of 8, for the verifier */
		if (n <= STAGED && at <= STAGE - STAGED) {
			from = (u64 *)&t->rec;
			to = (u64 *)&stage.data[at];
			for (i = 0; i < STAGED / 8; i++) {
				if (8 * i >= n)
					break;
				to[i] = from[i];
			}
			stage.used = at + n;
			stage.records += count;
			if (ctl.asleep)
				unstage();
			return 0;
		}
	}
	output(&t->rec, n, count);
	return 0;
}

/* emit makes a record out of what the task holds. */
inline_ int emit(struct task *t, u32 flags)
{
	t->rec.flags = flags | t->flags;
	stats()->produced++;
	return put(t, 1);
}

SEC("raw_tracepoint/flush")
int flush(struct bpf_raw_tracepoint_args *ctx) { return unstage(); }

/* args are a record's arguments. */
inline_ u64 *args(struct task *t) { return (u64 *)t->data; }

#define ARGS_LEN 48

inline_ void set_args(struct task *t, u32 n)
{
	t->rec.args = n;
	t->rec.attachments = 0;
	t->length = 8 * n;
}

#include "attach.h"
#include "capture.h"

/* Offsets are constants to the verifier, as it needs them for such memory. */
#define FIELD(type, base, off) (*(type *)((u8 *)(base) + (off)))

/* A call of MIPS o32 that has its number and arguments as arguments. */
#define O32_SYSCALL 4000

/* stack_args fetches what o32 passes on the stack: all behind the fourth, and
 * of the call above one more. */
FUNC int stack_args(struct task *t, u64 sp)
{
	u32 w[3] = {};
	u64 *a;

	GUARD(t);
	a = args(t);
	if (bpf_probe_read_user(w, sizeof(w), (void *)(sp + 16)))
		return 0;
	if (t->rec.call == O32_SYSCALL) {
		t->rec.call = a[0];
		a[0] = a[1];
		a[1] = a[2];
		a[2] = a[3];
		a[3] = w[0];
		a[4] = w[1];
		a[5] = w[2];
	} else {
		a[4] = w[0];
		a[5] = w[1];
	}
	return 0;
}

/* is_compat says whether a call is one of the second ABI that the kernel has:
 * its number tells, or the task's state. */
inline_ int is_compat(void *task, u32 nr)
{
	u32 status;

	if (cfg.compat_first)
		return nr - cfg.compat_first < 1000;
	if (!cfg.compat_mask)
		return 0;
	if (cfg.btf)
		status = FIELD(u32, task, cfg.task_status);
	else
		status = rd32((u64)task + cfg.task_status);
	return status & cfg.compat_mask;
}

/* begin fills in what is known when a call begins. */
inline_ volatile const struct spec *begin(struct task *t, u32 nr, u64 pt_regs)
{
	void *task, *regs;
	u32 at, abi = cfg.abi, stacked = cfg.regs_sp != OFF_NONE;
	volatile const struct spec *s;
	u64 *a = args(t);

	if (cfg.btf) {
		task = bpf_get_current_task_btf();
		regs = bpf_task_pt_regs(task);
	} else {
		task = (void *)(u64)(klong)bpf_get_current_task();
		regs = &t->data[AREA - REGS]; /* nothing is there yet */
		bpf_probe_read_kernel(regs, cfg.regs_size, (void *)pt_regs);
	}
	if (is_compat(task, nr)) {
		abi = cfg.abi_compat;
		t->rec.ip = FIELD(u32, regs, cfg.regs_ip32);
		a[0] = FIELD(u32, regs, cfg.regs_compat[0]);
		a[1] = FIELD(u32, regs, cfg.regs_compat[1]);
		a[2] = FIELD(u32, regs, cfg.regs_compat[2]);
		a[3] = FIELD(u32, regs, cfg.regs_compat[3]);
		a[4] = FIELD(u32, regs, cfg.regs_compat[4]);
		a[5] = FIELD(u32, regs, cfg.regs_compat[5]);
	} else {
		stacked = stacked && sizeof(klong) == 4;
		t->rec.ip = FIELD(klong, regs, cfg.regs_ip);
		a[0] = FIELD(klong, regs, cfg.regs_args[0]);
		a[1] = FIELD(klong, regs, cfg.regs_args[1]);
		a[2] = FIELD(klong, regs, cfg.regs_args[2]);
		a[3] = FIELD(klong, regs, cfg.regs_args[3]);
		a[4] = FIELD(klong, regs, cfg.regs_args[4]);
		a[5] = FIELD(klong, regs, cfg.regs_args[5]);
	}
	t->rec.call = nr;
	if (stacked && nr == O32_SYSCALL) {
		stack_args(t, FIELD(klong, regs, cfg.regs_sp));
		nr = t->rec.call;
		stacked = 0;
	}
	if (abi == cfg.abi_compat) {
		at = nr - compat.first;
		at = at < compat.count ? compat.base + at : 0;
	} else {
		if (nr & X32_BIT && cfg.abi_x32) {
			abi = cfg.abi_x32;
			nr &= ~X32_BIT;
		}
		at = nr - native.first;
		at = at < native.count ? native.base + at : 0;
	}
	t->rec.abi = abi;
	t->rec.mux = 0;
	t->spec = at;
	s = &specs[at & (MAX_SPECS - 1)];
	if (stacked && (s->args & 7) > 4)
		stack_args(t, FIELD(klong, regs, cfg.regs_sp));
	if (s->flags & SPEC_MUX) {
		if (load_mux(t, word_of(t)))
			s = &specs[t->spec & (MAX_SPECS - 1)];
		else
			t->retry = AGAIN;
	}
	set_args(t, s->args & 7);
	return s;
}

/* demux finds out at its end what a sub-call was. */
FUNC int demux(struct task *t)
{
	volatile const struct spec *s;

	GUARD(t);
	t->retry = 0;
	if (load_mux(t, word_of(t))) {
		s = &specs[t->spec & (MAX_SPECS - 1)];
		set_args(t, s->args & 7);
		t->retry = s->in;
	} else if (t->rec.result != -EFAULT || t->flags & SHARED) {
		put_empty(t, META(1, ATT_BYTES), ATT_F_UNREADABLE);
		stats()->unreadable++;
	}
	return 0;
}

/* enter is the beginning of a tracked task's call. It returns which arguments are
 * to be read. */
FUNC int enter(struct task *t, u32 nr, u64 regs)
{
	GUARD(t);
	t->rec.begin = bpf_ktime_get_boot_ns();
	t->skip = 0;
	t->retry = 0;
	return begin(t, nr, regs)->in;
}

/* entered is what comes when they are read. */
inline_ int entered(struct task *t)
{
	t->in_call = 1;
	if (specs[t->spec & (MAX_SPECS - 1)].flags & SPEC_ENTRY) {
		t->rec.end = 0;
		t->rec.result = 0;
		mark_pending(t);
		emit(t, REC_F_ENTRY);
		t->in_call = 2;
	}
	return 0;
}

#define NO_RECORD -1

/* leave is its end. It returns which arguments are to be read, or NO_RECORD. */
FUNC int leave(struct task *t, s64 result, u32 nr, u64 regs)
{
	u32 in_call;

	GUARD(t);
	if (t->skip) {
		t->skip = 0;
		return NO_RECORD;
	}
	t->rec.flags = 0;
	in_call = t->in_call;
	if (!in_call) {
		if ((s32)nr < 0)
			return NO_RECORD; /* an interrupt's or exception's way out */
		t->rec.begin = bpf_ktime_get_boot_ns();
		begin(t, nr, regs);
		t->spec = 0; /* what was there when it began is not known */
		t->retry = 0;
		t->rec.flags = REC_F_NO_ENTRY;
	} else if (in_call == 2) {
		t->rec.flags = REC_F_CONTINUED;
		set_args(t, t->rec.args & 7);
	}
	t->in_call = 0;
	t->rec.result = result;
	t->rec.end = bpf_ktime_get_boot_ns();
	if (t->retry & AGAIN)
		demux(t);
	return left_to_read(t);
}

/* left is what comes when they are read. */
inline_ int left(struct task *t) { return emit(t, t->rec.flags); }

SEC("raw_tracepoint/sys_enter")
int sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct task *t = find(current_tid());

	if (!t)
		return 0;
	CAPTURE(ctx, t, enter(t, ctx->args[1], ctx->args[0]), begin);
	return entered(t);
}

/* number_of finds the number of a call that was not seen to begin. */
inline_ u32 number_of(u64 regs)
{
	return cfg.regs_nr == OFF_NONE ? OFF_NONE : rd32(regs + cfg.regs_nr) & cfg.nr_mask;
}

/* result_of makes 64 bits of a result: errors are negative, addresses are not. */
inline_ s64 result_of(u64 v)
{
	klong r = v;

	return r >= (klong)-4095 ? (kslong)r : (s64)r;
}

SEC("raw_tracepoint/sys_exit")
int sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task *t = find(current_tid());

	s32 which;

	if (!t)
		return 0;
	which = leave(t, result_of(ctx->args[1]), t->in_call ? 0 : number_of(ctx->args[0]), ctx->args[0]);
	if (which == NO_RECORD)
		return 0;
	CAPTURE(ctx, t, which, finish);
	return left(t);
}

#ifdef FLAT

SEC("raw_tracepoint/capture_begin")
int capture_begin(struct bpf_raw_tracepoint_args *ctx)
{
	struct task *t = find(current_tid());

	if (!t)
		return 0;
	begin_one(t, next(t));
	CAPTURE(ctx, t, t->which, begin);
	return entered(t);
}

SEC("raw_tracepoint/capture_finish")
int capture_finish(struct bpf_raw_tracepoint_args *ctx)
{
	struct task *t = find(current_tid());

	if (!t)
		return 0;
	finish_one(t, next(t));
	CAPTURE(ctx, t, t->which, finish);
	return left(t);
}

#endif

#include "process.h"
