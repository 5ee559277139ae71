/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a call's arguments point to: package sysno says what to read. */

#define META(arg, kind) ((u32)(arg) | (kind) << 8)

/* word_of is the size of a pointer in the call's ABI. */
inline_ u32 word_of(struct task *t)
{
	return t->rec.abi == cfg.abi ? sizeof(klong) : 4;
}

/* load_mux puts the arguments of a sub-call in the place of the call's own. */
FUNC int load_mux(struct task *t, u32 word)
{
	u64 sub, ptr, *a;
	int i;

	GUARD(t);
	a = args(t);
	sub = a[0];
	ptr = a[1];
	if (sub == 0 || sub > 31)
		return 0;
	/* The array may end with its page: take what there is. */
	if (word == 4) {
		u32 w[6] = {};
		if (bpf_probe_read_user(w, sizeof(w), (void *)ptr) && bpf_probe_read_user(w, 12, (void *)ptr) &&
		    bpf_probe_read_user(w, 8, (void *)ptr))
			return 0;
		for (i = 0; i < 6; i++)
			a[i] = w[i];
	} else {
		u64 w[6] = {};
		if (bpf_probe_read_user(w, sizeof(w), (void *)ptr) && bpf_probe_read_user(w, 24, (void *)ptr) &&
		    bpf_probe_read_user(w, 16, (void *)ptr))
			return 0;
		for (i = 0; i < 6; i++)
			a[i] = w[i];
	}
	t->rec.mux = sub;
	t->spec = cfg.mux_base + (u32)sub;
	return 1;
}

#define MESSAGE (~0ull) /* no count: the argument is a message */

/* The buffers of put_vector, and the bytes that there are in all. */
struct vector {
	u64 iov, count, total;
};

/* open_msg appends the address of a struct msghdr, and finds its buffers. */
inline_ int open_msg(struct task *t, u64 msg, u32 arg, u32 flags, struct vector *v)
{
	u64 name;
	u32 length;

	if (word_of(t) == 4) {
		u32 m[4] = {};
		if (bpf_probe_read_user(m, sizeof(m), (void *)msg))
			return -EFAULT;
		name = m[0];
		length = m[1];
		v->iov = m[2];
		v->count = m[3];
	} else {
		u64 m[4] = {};
		if (bpf_probe_read_user(m, sizeof(m), (void *)msg))
			return -EFAULT;
		name = m[0];
		length = ((u32 *)m)[2];
		v->iov = m[2];
		v->count = m[3];
	}
	if (name && length)
		return put_some(t, name, length, SOCKADDR, META(arg, ATT_SOCKADDR), flags);
	return 0;
}

/* put_vector appends the buffers of argument i: itself, or of the message that it
 * points to. */
FUNC int put_vector(struct task *t, u32 i, u64 count, u64 total, u32 flags)
{
	struct vector v = {.count = count, .total = total};
	int err;

	GUARD(t);
	if (i >= 6)
		return 0;
	v.iov = args(t)[i];
	if (count == MESSAGE) {
		err = open_msg(t, v.iov, i, flags, &v);
		if (err < 0)
			return err;
	}
	return put_iov(t, v.iov, v.count, v.total, META(i, ATT_BYTES) | word_of(t) << 16 | flags << 24);
}

inline_ u64 arg_of(struct task *t, u32 i)
{
	return i < 6 ? args(t)[i] : 0;
}

/* The kind of attachment that a capture makes. */
inline_ u32 kind_of(u32 capture)
{
	switch (capture) {
	case CAPTURE_STRING:
	case CAPTURE_PRCTL:
		return ATT_STRING;
	case CAPTURE_STRUCT:
	case CAPTURE_OUT_STRUCT:
		return ATT_STRUCT;
	case CAPTURE_SOCKADDR:
	case CAPTURE_OUT_SOCKADDR:
		return ATT_SOCKADDR;
	case CAPTURE_ARGV:
		return ATT_ARGV;
	}
	return ATT_BYTES;
}

/*
 * capture_one reads what argument i points to, which the kernel reads too. A
 * program of root's may have memory at 0, so that NULL is a pointer, too, where
 * the kernel does not take it for none.
 */
FUNC int capture_one(struct task *t, u32 i, u32 flags)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];
	u32 kind, limit = BUFFER;
	u64 ptr, n;

	if (i >= 6)
		return 0;
	kind = s->kind[i];
	n = s->param[i];
	ptr = args(t)[i];
	if (!ptr && kind != CAPTURE_STRING && kind != CAPTURE_SOCKADDR && kind != CAPTURE_IN)
		return 0;
	switch (kind) {
	case CAPTURE_PRCTL:
		if ((u32)args(t)[0] != PR_SET_NAME)
			return 0;
		/* fall through */
	case CAPTURE_STRING:
		return put_string(t, ptr, META(i, ATT_STRING), flags);
	case CAPTURE_ARGV:
		return put_argv(t, ptr, META(i, ATT_ARGV), word_of(t), flags);
	case CAPTURE_IOV:
		return put_vector(t, i, (u32)arg_of(t, n), ~0ull, flags);
	case CAPTURE_MMSG:
		if ((u32)arg_of(t, i + 1) > 1)
			flags |= ATT_F_TRUNCATED;
		/* fall through */
	case CAPTURE_MSG:
		return put_vector(t, i, MESSAGE, ~0ull, flags);
	case CAPTURE_IN:
		n = arg_of(t, n);
		break;
	case CAPTURE_STRUCT:
		break;
	case CAPTURE_SOCKADDR:
		n = (u32)arg_of(t, n);
		limit = SOCKADDR;
		break;
	default:
		return 0;
	}
	return put_some(t, ptr, n, limit, META(i, kind_of(kind)), flags);
}

#if defined LONG32 || defined FLAT
#define mapped(addr) 1
#else
static long found(void *task, void *vma, void *ctx) { return 0; }

/* mapped is 0 if the task certainly has no memory there: the lock may be taken. */
inline_ int mapped(u64 addr)
{
	return !cfg.btf || bpf_find_vma(bpf_get_current_task_btf(), addr, found, 0, 0) != -ENOENT;
}
#endif

/* later is for what could not be read when the call began. */
FUNC int later(struct task *t, u32 i)
{
	GUARD(t);
	if (i >= 6)
		return 0;
	t->retry |= 1 << i;
	if (!mapped(args(t)[i]))
		t->retry |= WILD(i);
	return 0;
}

/* begin_one reads argument i at the beginning of a call; what fails is tried
 * again. */
inline_ void begin_one(struct task *t, u32 i)
{
	if (capture_one(t, i, 0) < 0)
		later(t, i);
}

/* unreadable says that argument i could not be read. */
FUNC int unreadable(struct task *t, u32 i)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];

	if (i < 6)
		put_empty(t, META(i, kind_of(s->kind[i])), ATT_F_UNREADABLE);
	return 0;
}

/* mark_pending makes a record that leaves now say what it lacks. */
FUNC int mark_pending(struct task *t)
{
	GUARD(t);
	u32 i;

	if (!t->retry)
		return 0;
	UNROLL
	for (i = 0; i < 6; i++)
		if (t->retry >> i & 1 && !(t->retry & WILD(i)))
			unreadable(t, i);
	return 0;
}

/* capture_result reads what the kernel has written to argument i. */
FUNC int capture_result(struct task *t, u32 i)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];
	u64 ptr, n, got = t->rec.result;
	u32 kind, length = 0, limit = BUFFER;

	if (i >= 6)
		return 0;
	kind = s->kind[i];
	n = s->param[i];
	ptr = args(t)[i];
	if (!ptr)
		return 0;
	switch (kind) {
	case CAPTURE_OUT_IOV:
		return put_vector(t, i, (u32)arg_of(t, n), got, 0);
	case CAPTURE_OUT_MMSG:
		if (!got)
			return 0;
		got = BUFFER;
		/* fall through */
	case CAPTURE_OUT_MSG:
		return put_vector(t, i, MESSAGE, got, 0);
	case CAPTURE_OUT:
		n = arg_of(t, n);
		if (n > got)
			n = got;
		break;
	case CAPTURE_OUT_STRUCT:
		if (n == 4 && !got)
			return 0; /* wait: nobody */
		break;
	case CAPTURE_OUT_SOCKADDR:
		if (bpf_probe_read_user(&length, sizeof(length), (void *)arg_of(t, n)))
			return -EFAULT;
		n = length;
		limit = SOCKADDR;
		break;
	default:
		return 0;
	}
	return put_some(t, ptr, n, limit, META(i, kind_of(kind)), 0);
}

/*
 * garbage says that the kernel cannot have read what argument i points to
 * either, so that the trace lacks nothing: the pointer is all that there is.
 *
 * Two things are proof of it, if the call has failed: that nothing was mapped
 * there when it began; and EFAULT, but not if another thread may have taken the
 * memory away after the kernel has read it (the fault may be another pointer's).
 */
inline_ int garbage(struct task *t, u32 retry, u32 i)
{
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];
	u32 kind = s->kind[i];

	if (!args(t)[i])
		return 1;
	if (t->rec.result >= 0)
		return 0;
	/* No descriptor, no look at the vectors that should go there. */
	if ((t->rec.result == -EBADF || t->rec.result == -(s64)cfg.enotsock) && kind >= CAPTURE_IOV && kind <= CAPTURE_MMSG)
		return 1;
	return retry & WILD(i) || (t->rec.result == -EFAULT && !(t->flags & SHARED));
}

/* part_of reads a buffer as far as its page goes: the kernel takes what it gets. */
FUNC int part_of(struct task *t, u32 i)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];
	u64 ptr, left;

	if (i >= 6 || s->kind[i] != CAPTURE_IN)
		return -EFAULT;
	ptr = args(t)[i];
	left = PAGE - (ptr & (PAGE - 1));
	if (left >= arg_of(t, s->param[i]))
		return -EFAULT;
	return put_some(t, ptr, left, BUFFER, META(i, ATT_BYTES), ATT_F_AT_EXIT | ATT_F_TRUNCATED);
}

/* again_one tries once more to read what could not be read at the beginning.
 * Only so many functions may call each other: it is none of its own. */
inline_ int again_one(struct task *t, u32 i, u32 retry)
{
	GUARD(t);
	if (i >= 6 || capture_one(t, i, ATT_F_AT_EXIT) >= 0 || garbage(t, retry, i))
		return 0;
	return part_of(t, i);
}

/* finish_one reads argument i at the end of a call: again, or for the first
 * time. */
FUNC int finish_one(struct task *t, u32 i)
{
	GUARD(t);
	u32 retry = t->retry, out = specs[t->spec & (MAX_SPECS - 1)].out;

	if (i >= 6)
		return 0;
	if (t->rec.result < 0)
		out = 0;
	if ((retry >> i & 1 && again_one(t, i, retry) < 0) || (out >> i & 1 && capture_result(t, i) < 0)) {
		unreadable(t, i);
		stats()->unreadable++;
	}
	return 0;
}

/* left_to_read are the arguments for [finish_one]. */
inline_ u32 left_to_read(struct task *t)
{
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];

	if (t->rec.result < 0)
		return t->retry & ARGUMENTS;
	if (s->flags & SPEC_EXEC)
		t->retry = 0; /* the memory is another program's; the exec record has it all */
	return (t->retry & ARGUMENTS) | s->out;
}

/*
 * The arguments of a call, one after the other: which is a set of them.
 *
 * Programs that are FLAT do that by a program that runs itself again for the
 * next one. The verifier goes through a loop turn by turn, and without functions
 * through all that is in it.
 */
#ifdef FLAT

enum { AT_begin, AT_finish };

int capture_begin(struct bpf_raw_tracepoint_args *ctx);
int capture_finish(struct bpf_raw_tracepoint_args *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__array(values, int(struct bpf_raw_tracepoint_args *));
} captures SEC(".maps") = {.values = {[AT_begin] = &capture_begin, [AT_finish] = &capture_finish}};

/* CAPTURE reads arguments at begin or finish: it leaves for that program, which
 * goes on as the one that it was called in does. */
#define CAPTURE(ctx, t, set, when)                                          \
	{                                                                   \
		t->which = set;                                             \
		if (t->which) {                                             \
			bpf_tail_call(ctx, &captures, AT_##when);           \
			stats()->unreadable++;                              \
		}                                                           \
	}

/* next takes an argument out of those that are to be read. Its number goes through
 * memory, so that the verifier takes it for any of the six; and it must see that of
 * the very value that is kept. */
inline_ u32 next(struct task *t)
{
	u64 i;

	for (i = 0; i < 5; i++)
		if (t->which >> i & 1)
			break;
	t->which &= ~(1u << i);
	t->arg = i;
	asm volatile("" ::: "memory");
	i = t->arg;
	asm volatile("" : "+r"(i));
	if (i > 5)
		i = 5;
	asm volatile("" : "+r"(i));
	return i;
}

#else

#define CAPTURE(ctx, t, set, when)                                          \
	{                                                                   \
		u32 which_ = set;                                           \
		if (which_)                                                 \
			capture_##when(t, which_);                          \
	}

FUNC int capture_begin(struct task *t, u32 which)
{
	u32 i;

	GUARD(t);
	for (i = 0; i < 6; i++)
		if (which >> i & 1)
			begin_one(t, i);
	return 0;
}

FUNC int capture_finish(struct task *t, u32 which)
{
	u32 i;

	GUARD(t);
	for (i = 0; i < 6; i++)
		if (which >> i & 1)
			finish_one(t, i);
	return 0;
}

#endif
