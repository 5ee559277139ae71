/* SPDX-License-Identifier: Apache-2.0 */
/* Tries what only malware and administrators do: ptrace, bpf, io_uring, kexec,
 * reboot with wrong numbers, setuid, mount, process_vm_writev, chroot. */
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int main(void)
{
	static char attr[128] = {1};
	struct iovec to = {attr, 5}, from = {"patch", 5};

	ptrace(PTRACE_ATTACH, 99999, 0, 0);
	syscall(SYS_bpf, 5, attr, sizeof attr);
	syscall(SYS_io_uring_setup, 8, attr);
	syscall(SYS_kexec_load, 0, 0, 0, 0xffff0000);
	syscall(SYS_reboot, 1, 2, 0x4321fedc, 0);
	syscall(SYS_process_vm_writev, getpid(), &from, 1ul, &to, 1ul, 0ul);
	mkdir("/tmp/mnt", 0755);
	mount("none", "/tmp/mnt", "tmpfs", MS_NOEXEC, "size=64k");
	umount2("/tmp/mnt", MNT_DETACH);
	chroot("/tmp");
	setuid(1000);
	return 0;
}
