/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Attachments. Each function appends one to the task's record and returns
 * how many bytes it has, or a negative error, in which case nothing was
 * appended. Limits are constants so that the verifier can follow them.
 */

#define HEAD 8
#define LARGE 4096
#define MEDIUM 3072
#define SMALL 512

inline_ u32 padded(u32 n) { return (n + 7) & ~7u; }

/* place is where the next attachment goes. That it is a multiple of 8 the
 * verifier must see, for CPUs that cannot read across. */
inline_ u64 place(struct task *t)
{
	u64 off = t->length;

	asm volatile("%0 &= %1" : "+r"(off) : "i"(0x1ff8));
	return off;
}

/* finish writes the header of the attachment at off and counts it. */
inline_ void finish(struct task *t, u64 off, u32 meta, u32 flags, u32 n)
{
	struct attachment *a = (void *)&t->data[off];

	a->arg = meta;
	a->kind = meta >> 8;
	a->flags = flags;
	a->length = n;
	t->rec.attachments++;
	t->length = off + HEAD + padded(n);
}

/* zero_tail clears what follows n bytes at p up to a multiple of 8. */
inline_ void zero_tail(u8 *p, u32 n)
{
	u64 *last = (u64 *)(p + (n & ~7u));
	u32 used = 8 * (n & 7);

	if (used)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
		*last &= (1ull << used) - 1;
#else
		*last &= ~0ull << (64 - used);
#endif
}

/* put_empty appends an attachment that holds only flags. */
inline_ int put_empty(struct task *t, u32 meta, u32 flags)
{
	u64 off = place(t);

	if (off > AREA - HEAD)
		return -1;
	finish(t, off, meta, flags, 0);
	return 0;
}

/*
 * The helper counts the NUL, but of an empty string it says 0. A name that is
 * larger than LARGE the kernel does not take either; but what is cut for lack of
 * room is missing.
 */
#define PUT_STRING(READ, MAX)                                               \
	{                                                                   \
		s32 n = READ(&t->data[off + HEAD], MAX, (void *)ptr);       \
		u64 len;                                                    \
		if (n < 0)                                                  \
			return n;                                           \
		if (n == MAX) {                                             \
			flags |= ATT_F_TRUNCATED;                           \
			if (MAX < LARGE)                                    \
				stats()->unreadable++;                      \
		}                                                           \
		len = n ? (u32)n - 1 : 0;                                   \
		asm volatile("" : "+r"(len)); /* one value, for the verifier */ \
		if (len >= MAX)                                             \
			return -EFAULT;                                     \
		zero_tail(&t->data[off + HEAD], len);                       \
		finish(t, off, meta, flags, len);                           \
		return len;                                                 \
	}

/* put_string appends a string of the user's; meta is argument | kind << 8. */
FUNC int put_string(struct task *t, u64 ptr, u32 meta, u32 flags)
{
	GUARD(t);
	u64 off = place(t);

	if (off <= AREA - HEAD - LARGE)
		PUT_STRING(bpf_probe_read_user_str, LARGE)
	if (off <= AREA - HEAD - 8 - MEDIUM) /* 8: no power of 2, for the verifier */
		PUT_STRING(bpf_probe_read_user_str, MEDIUM)
	if (off <= AREA - HEAD - SMALL)
		PUT_STRING(bpf_probe_read_user_str, SMALL)
	stats()->unreadable++;
	return put_empty(t, meta, flags | ATT_F_TRUNCATED);
}

/* put_kernel_string appends a string of the kernel's. */
FUNC int put_kernel_string(struct task *t, u64 ptr, u32 meta)
{
	GUARD(t);
	u64 off = place(t);
	u32 flags = 0;

	if (off <= AREA - HEAD - LARGE)
		PUT_STRING(bpf_probe_read_kernel_str, LARGE)
	if (off <= AREA - HEAD - SMALL)
		PUT_STRING(bpf_probe_read_kernel_str, SMALL)
	return put_empty(t, meta, ATT_F_TRUNCATED);
}

/* read_user reads n bytes of the user's, no more than max: the verifier must see
 * that of the very value that the helper gets. */
inline_ int read_user(void *to, u64 n, u32 max, u64 ptr)
{
	asm volatile("" : "+r"(n));
	if (n > max)
		return -EFAULT;
	return bpf_probe_read_user(to, n, (void *)ptr);
}

#define PUT_BYTES(MAX)                                                      \
	{                                                                   \
		s32 err;                                                    \
		if (n > MAX) {                                              \
			n = MAX;                                            \
			flags |= ATT_F_TRUNCATED;                           \
		}                                                           \
		*(u64 *)&t->data[off + HEAD + ((n - 1) & (MAX - 8))] = 0;   \
		err = read_user(&t->data[off + HEAD], n, MAX, ptr);         \
		if (err)                                                    \
			return err;                                         \
		finish(t, off, meta, flags, n);                             \
		return n;                                                   \
	}

/* put_bytes appends n bytes of the user's, or as many as there is room for. */
FUNC int put_bytes(struct task *t, u64 ptr, u32 n, u32 meta, u32 flags)
{
	GUARD(t);
	u64 off = place(t);

	if (n == 0)
		return 0;
	if (off <= AREA - HEAD - LARGE)
		PUT_BYTES(LARGE)
	if (off <= AREA - HEAD - SMALL)
		PUT_BYTES(SMALL)
	return put_empty(t, meta, flags | ATT_F_TRUNCATED);
}

/* put_some is put_bytes with a limit of its own. */
inline_ int put_some(struct task *t, u64 ptr, u64 n, u32 limit, u32 meta, u32 flags)
{
	if (n > limit) {
		n = limit;
		flags |= ATT_F_TRUNCATED;
	}
	return put_bytes(t, ptr, n, meta, flags);
}

/*
 * Attachments of several pieces. The pieces are read by functions of their own,
 * so that the verifier does not follow each turn of the loops around them.
 */

/* piece reads n bytes of the user's to a place in the buffer. */
inline_ int piece(struct task *t, u32 at, u64 ptr, u32 n)
{
	if (at > AREA - BUFFER)
		return -EFAULT;
	return read_user(&t->data[at], n, BUFFER, ptr);
}

#define PIECE_STRING 1024

/* piece_string reads a string of the user's and returns its length with NUL. */
inline_ int piece_string(struct task *t, u32 at, u64 ptr)
{
	s32 n;

	if (at > AREA - PIECE_STRING)
		return -EFAULT;
	n = bpf_probe_read_user_str(&t->data[at], PIECE_STRING, (void *)ptr);
	if (n)
		return n;
	t->data[at] = 0; /* an empty one */
	return 1;
}

#define PIECE_NAME 256

/* piece_name reads a string of the kernel's and returns its length with NUL. */
FUNC int piece_name(struct task *t, u32 at, u64 ptr)
{
	GUARD(t);
	if (at > AREA - PIECE_NAME)
		return -EFAULT;
	return bpf_probe_read_kernel_str(&t->data[at], PIECE_NAME, (void *)ptr);
}

/* close_pieces makes n bytes that lie behind the attachments one of them. */
FUNC int close_pieces(struct task *t, u32 n, u32 meta, u32 flags)
{
	u64 off;

	GUARD(t);
	off = place(t);
	if (off > AREA - HEAD - LARGE || n > LARGE - 8)
		return -EFAULT;
	zero_tail(&t->data[off + HEAD], n);
	finish(t, off, meta, flags, n);
	return n;
}

/* user_word reads a pointer or long of the user's, ~0 if that is not possible. */
inline_ u64 user_word(u64 at, u32 word)
{
	u64 v = 0;
	u32 w = 0;

	if (word == 4)
		return bpf_probe_read_user(&w, sizeof(w), (void *)at) ? ~0ull : w;
	return bpf_probe_read_user(&v, sizeof(v), (void *)at) ? ~0ull : v;
}

/* steps begins to go through pieces. */
inline_ struct steps *steps(struct task *t, u64 at, u32 word)
{
	struct steps *s = &t->steps;

	s->at = at;
	s->count = s->total = s->seen = 0;
	s->pos = s->cut = s->end = 0;
	s->word = word;
	return s;
}

/* How much of an attachment's meta is what in put_iov. */
#define META_WORD(meta) ((meta) >> 16 & 0xff)
#define META_FLAGS(meta) ((meta) >> 24)

/* step_iov takes the next buffer and says whether there may be another. */
FUNC int step_iov(struct task *t)
{
	struct steps *s;
	u64 base, length;
	u32 n;

	GUARD(t);
	s = &t->steps;
	if (s->count == 0 || s->pos >= BUFFER || s->seen >= s->total)
		return 0;
	base = user_word(s->at, s->word);
	length = user_word(s->at + s->word, s->word);
	if (base == ~0ull)
		return -EFAULT;
	if (length > s->total - s->seen)
		length = s->total - s->seen;
	n = length > BUFFER - s->pos ? BUFFER - s->pos : length;
	if (n && piece(t, t->length + HEAD + s->pos, base, n))
		return -EFAULT;
	s->at += 2 * s->word;
	s->count--;
	s->seen += length;
	s->pos += n;
	return 1;
}

#define IOV_COUNT 4

/* put_iov appends the first bytes of count buffers, of total bytes in all. The
 * size of a pointer and flags come in meta. */
FUNC int put_iov(struct task *t, u64 iov, u64 count, u64 total, u32 meta)
{
	struct steps *s;
	u32 flags = META_FLAGS(meta);
	int i, more = 1;

	GUARD(t);
	s = steps(t, iov, META_WORD(meta));
	s->count = count;
	s->total = total;
	if (t->length > AREA - HEAD - LARGE)
		return put_empty(t, meta, flags | ATT_F_TRUNCATED);
	for (i = 0; i < IOV_COUNT; i++) {
		more = step_iov(t);
		if (more <= 0)
			break;
	}
	if (more < 0)
		return more;
	if (s->seen > s->pos || (s->seen < s->total && s->count))
		flags |= ATT_F_TRUNCATED;
	return close_pieces(t, s->pos, meta, flags);
}

/* step_argv takes the next string and says whether there may be another. */
FUNC int step_argv(struct task *t)
{
	struct steps *s;
	u64 ptr;
	s32 n;

	GUARD(t);
	s = &t->steps;
	ptr = user_word(s->at, s->word);
	if (ptr == ~0ull)
		return -EFAULT;
	if (!ptr) {
		s->end = 1;
		return 0;
	}
	if (s->pos > LARGE - 8 - PIECE_STRING)
		return 0;
	n = piece_string(t, t->length + HEAD + s->pos, ptr);
	if (n <= 0)
		return -EFAULT;
	if (n == PIECE_STRING)
		s->cut = 1;
	s->at += s->word;
	s->pos += n;
	return 1;
}

#define ARGV_COUNT 24

/* put_argv appends the strings of a NULL-terminated array. */
FUNC int put_argv(struct task *t, u64 argv, u32 meta, u32 word, u32 flags)
{
	struct steps *s;
	int i, more = 1;

	GUARD(t);
	s = steps(t, argv, word);
	if (t->length > AREA - HEAD - LARGE)
		return put_empty(t, meta, flags | ATT_F_TRUNCATED);
	for (i = 0; i < ARGV_COUNT + 1; i++) {
		more = step_argv(t);
		if (more <= 0)
			break;
	}
	if (more < 0)
		return more;
	if (!s->end || s->cut)
		flags |= ATT_F_TRUNCATED;
	return close_pieces(t, s->pos, meta, flags);
}
