/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a call's arguments point to: package sysno says what to read. */

#define META(arg, kind) ((u32)(arg) | (kind) << 8)

/* word_of is the size of a pointer in the call's ABI. */
inline_ u32 word_of(struct task *t)
{
	return t->rec.abi == cfg.abi ? sizeof(klong) : 4;
}

/* load_mux puts the arguments of a sub-call in the place of the call's own. */
__noinline int load_mux(struct task *t, u32 word)
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

/* put_msg appends the address and the buffers of a struct msghdr. */
__noinline int put_msg(struct task *t, u64 msg, u32 arg, u64 total, u32 flags)
{
	GUARD(t);
	u64 name, iov, count;
	u32 length, word = word_of(t);
	int err = 0;

	if (word == 4) {
		u32 m[4] = {};
		if (bpf_probe_read_user(m, sizeof(m), (void *)msg))
			return -EFAULT;
		name = m[0];
		length = m[1];
		iov = m[2];
		count = m[3];
	} else {
		u64 m[4] = {};
		if (bpf_probe_read_user(m, sizeof(m), (void *)msg))
			return -EFAULT;
		name = m[0];
		length = ((u32 *)m)[2];
		iov = m[2];
		count = m[3];
	}
	if (name && length)
		err = put_some(t, name, length, SOCKADDR, META(arg, ATT_SOCKADDR), flags);
	if (err >= 0)
		err = put_iov(t, iov, count, total, META(arg, ATT_BYTES) | word << 16 | flags << 24);
	return err;
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
		return ATT_STRUCT;
	case CAPTURE_SOCKADDR:
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
__noinline int capture_one(struct task *t, u32 i, u32 flags)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];
	u32 kind, param;
	u64 ptr, old = ~0ull;

	if (i >= 6)
		return 0;
	kind = s->kind[i];
	param = s->param[i];
	ptr = args(t)[i];
	if (!ptr && kind != CAPTURE_STRING && kind != CAPTURE_SOCKADDR && kind != CAPTURE_IN)
		return 0;
	if (kind == CAPTURE_STRING || (kind == CAPTURE_PRCTL && (u32)args(t)[0] == PR_SET_NAME))
		return put_string(t, ptr, META(i, ATT_STRING), flags);
	switch (kind) {
	case CAPTURE_IN:
		return put_some(t, ptr, arg_of(t, param), BUFFER, META(i, ATT_BYTES), flags);
	case CAPTURE_STRUCT:
		return put_some(t, ptr, param, BUFFER, META(i, ATT_STRUCT), flags);
	case CAPTURE_SOCKADDR:
		return put_some(t, ptr, (u32)arg_of(t, param), SOCKADDR, META(i, ATT_SOCKADDR), flags);
	case CAPTURE_IOV:
		return put_iov(t, ptr, (u32)arg_of(t, param), old, META(i, ATT_BYTES) | word_of(t) << 16 | flags << 24);
	case CAPTURE_MMSG:
		if ((u32)arg_of(t, i + 1) > 1)
			flags |= ATT_F_TRUNCATED;
		return put_msg(t, ptr, i, old, flags);
	case CAPTURE_MSG:
		return put_msg(t, ptr, i, old, flags);
	case CAPTURE_ARGV:
		return put_argv(t, ptr, META(i, ATT_ARGV), word_of(t), flags);
	}
	return 0;
}

static long found(void *task, void *vma, void *ctx) { return 0; }

/* later is for what could not be read when the call began. */
__noinline int later(struct task *t, u32 i)
{
	GUARD(t);
	if (i >= 6)
		return 0;
	t->retry |= 1 << i;
	/* Only that there is nothing is certain: the lock may be taken. */
	if (cfg.btf && bpf_find_vma(bpf_get_current_task_btf(), args(t)[i], found, 0, 0) == -ENOENT)
		t->retry |= WILD(i);
	return 0;
}

/* capture_in reads at the beginning of a call; what fails is tried again. */
__noinline int capture_in(struct task *t, u32 which)
{
	u32 i;

	GUARD(t);
	for (i = 0; i < 6; i++)
		if (which >> i & 1 && capture_one(t, i, 0) < 0)
			later(t, i);
	return 0;
}

/* unreadable says that argument i could not be read. */
__noinline int unreadable(struct task *t, u32 i)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];

	if (i < 6)
		put_empty(t, META(i, kind_of(s->kind[i])), ATT_F_UNREADABLE);
	return 0;
}

/* mark_pending makes a record that leaves now say what it lacks. */
__noinline int mark_pending(struct task *t)
{
	GUARD(t);
	u32 i;

	if (t->retry)
		for (i = 0; i < 6; i++)
			if (t->retry >> i & 1 && !(t->retry & WILD(i)))
				unreadable(t, i);
	return 0;
}

/* capture_result reads what the kernel has written to argument i. */
__noinline int capture_result(struct task *t, u32 i)
{
	GUARD(t);
	volatile const struct spec *s = &specs[t->spec & (MAX_SPECS - 1)];
	u64 ptr, n = t->rec.result;
	u32 kind, param, length = 0;

	if (i >= 6)
		return 0;
	kind = s->kind[i];
	param = s->param[i];
	ptr = args(t)[i];
	if (!ptr)
		return 0;
	switch (kind) {
	case CAPTURE_OUT:
		if (n > arg_of(t, param))
			n = arg_of(t, param);
		return put_some(t, ptr, n, BUFFER, META(i, ATT_BYTES), 0);
	case CAPTURE_OUT_STRUCT:
		if (param == 4 && !n)
			return 0; /* wait: nobody */
		return put_some(t, ptr, param, BUFFER, META(i, ATT_STRUCT), 0);
	case CAPTURE_OUT_SOCKADDR:
		if (bpf_probe_read_user(&length, sizeof(length), (void *)arg_of(t, param)))
			return -EFAULT;
		return put_some(t, ptr, length, SOCKADDR, META(i, ATT_SOCKADDR), 0);
	case CAPTURE_OUT_IOV:
		return put_iov(t, ptr, (u32)arg_of(t, param), n, META(i, ATT_BYTES) | word_of(t) << 16);
	case CAPTURE_OUT_MSG:
		return put_msg(t, ptr, i, n, 0);
	case CAPTURE_OUT_MMSG:
		return n ? put_msg(t, ptr, i, BUFFER, 0) : 0;
	}
	return 0;
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
__noinline int part_of(struct task *t, u32 i)
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
__noinline int finish_one(struct task *t, u32 i, u32 retry, u32 which)
{
	GUARD(t);
	if (i >= 6)
		return 0;
	if ((retry >> i & 1 && again_one(t, i, retry) < 0) || (which >> i & 1 && capture_result(t, i) < 0)) {
		unreadable(t, i);
		stats()->unreadable++;
	}
	return 0;
}

/* capture_out reads at the end of a call. */
__noinline int capture_out(struct task *t, u32 which)
{
	u32 i, retry;

	GUARD(t);
	retry = t->retry;
	t->retry = 0;
	if (t->rec.result < 0)
		which = 0;
	else if (specs[t->spec & (MAX_SPECS - 1)].flags & SPEC_EXEC)
		retry = 0; /* the memory is another program's; the exec record has it all */
	for (i = 0; i < 6; i++)
		if ((retry | which) >> i & 1)
			finish_one(t, i, retry, which);
	return 0;
}
