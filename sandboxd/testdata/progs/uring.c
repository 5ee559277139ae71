/* SPDX-License-Identifier: Apache-2.0 */
/* Creates /tmp/by-ring without a call of open: io_uring does it (io_uring(7)).
 * Exits with 0 if the file is there afterwards. */
#include <fcntl.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	struct io_uring_params p;
	struct io_uring_sqe *sqe;
	char *sq;
	int fd;

	memset(&p, 0, sizeof p);
	fd = syscall(SYS_io_uring_setup, 4, &p);
	if (fd < 0)
		return 2;
	sq = mmap(0, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
	sqe = mmap(0, p.sq_entries * sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || sqe == MAP_FAILED)
		return 3;
	memset(sqe, 0, sizeof *sqe);
	sqe->opcode = IORING_OP_OPENAT;
	sqe->fd = AT_FDCWD;
	sqe->addr = (unsigned long)"/tmp/by-ring";
	sqe->len = 0600;
	sqe->open_flags = O_CREAT | O_WRONLY;
	((unsigned *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1)
		return 4;
	return access("/tmp/by-ring", F_OK) ? 1 : 0;
}
