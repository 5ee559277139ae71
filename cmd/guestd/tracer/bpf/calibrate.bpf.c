//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What guestd needs to find out where a kernel without BTF keeps what the
 * tracer reads: a look at the kernel's memory, and what is there while a program
 * is executed.
 */
#include "record.h"
#include "helpers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Shared with guestd, which maps it. */
struct seen {
	u64 task; /* of whoever ran look */
	u64 executed; /* of whoever has executed a program last */
	u64 failed; /* look could not */
	u8 bprm[512]; /* the struct linux_binprm of that */
	u8 memory[1024]; /* that look has read */
} seen SEC(".data.seen");

/* look reads as many bytes as the second argument says from where the first
 * does. */
SEC("raw_tracepoint/look")
int look(struct bpf_raw_tracepoint_args *ctx)
{
	u64 n = ctx->args[1];

	seen.task = (klong)bpf_get_current_task();
	if (n > sizeof(seen.memory))
		return 0;
	seen.failed = bpf_probe_read_kernel(seen.memory, n, (void *)ctx->args[0]) != 0;
	return 0;
}

SEC("raw_tracepoint/sched_process_exec")
int watch_exec(struct bpf_raw_tracepoint_args *ctx)
{
	seen.executed = (klong)ctx->args[0];
	bpf_probe_read_kernel(seen.bprm, sizeof(seen.bprm), (void *)ctx->args[2]);
	return 0;
}
