/* SPDX-License-Identifier: Apache-2.0 */
/* Makes each of the calls by which root can change the kernel or another process,
 * so that it changes nothing, between two files that it creates. It prints each. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CALL(name, ...) (syscall(SYS_##name, __VA_ARGS__), puts(#name))

int main(void)
{
	char attr[128] = {};

	close(open("/tmp/before", O_CREAT | O_WRONLY, 0600));
	CALL(init_module, attr, 0ul, "");
	CALL(finit_module, -1, "", 0);
	CALL(delete_module, "nothing", O_NONBLOCK);
	CALL(kexec_load, 0ul, 0ul, 0ul, 0ul);
#ifdef SYS_kexec_file_load
	CALL(kexec_file_load, -1, -1, 1ul, "", 0ul);
#endif
	CALL(bpf, -1, attr, sizeof attr);
	CALL(process_vm_writev, getpid(), 0ul, 0ul, 0ul, 0ul, 0ul);
	CALL(ptrace, PTRACE_ATTACH, getpid(), 0ul, 0ul);
#ifdef SYS_iopl
	CALL(iopl, 0);
	CALL(ioperm, 0ul, 1ul, 0);
#endif
	close(open("/tmp/after", O_CREAT | O_WRONLY, 0600));
	return 0;
}
