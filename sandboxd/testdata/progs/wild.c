/* SPDX-License-Identifier: Apache-2.0 */
/* 100 rounds of calls with pointers that are none, which fail with EFAULT, or
 * with EINVAL or EBADF before anybody looks at the pointer; and with names that
 * may be missing. Then it opens /tmp/honest. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int main(void)
{
	char *low = (void *)16, *gone = (void *)0x123456789000, *kernel = (void *)0xffffffff81000000;
	char *fence = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec part = {gone, 10};
	struct msghdr msg = {.msg_name = gone, .msg_namelen = 16, .msg_iov = &part, .msg_iovlen = 1};
	char *args[] = {gone, 0};
	struct statx sx;
	struct stat st;
	int i;

	for (i = 0; i < 100; i++) {
		open(low, O_RDONLY);
		open(gone, O_RDONLY);
		open(kernel, O_RDONLY);
		open(fence, O_RDONLY);
		open(0, O_RDONLY);
		unlinkat(AT_FDCWD, gone, 0x55);
		syscall(SYS_renameat2, AT_FDCWD, gone, AT_FDCWD, low, ~0u);
		syscall(SYS_memfd_create, gone, 0x7fff0000);
		connect(-1, (void *)gone, 16);
		write(-1, gone, 10);
		write(1, gone, 10);
		writev(1, &part, 1);
		sendmsg(-1, &msg, 0);
		sendmsg(1, &msg, 0);
		execve(gone, args, 0);
		execve("/usr/bin/wild", args, 0);
		mount(gone, gone, gone, 0, 0);
		syscall(SYS_newfstatat, 1, "", &st, AT_EMPTY_PATH);
		syscall(SYS_statx, 1, 0, AT_EMPTY_PATH, 0, &sx);
		utimensat(1, 0, 0, 0);
	}
	open("/tmp/honest", O_RDONLY);
	return 0;
}
