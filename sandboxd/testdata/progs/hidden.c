/* SPDX-License-Identifier: Apache-2.0 */
/* Takes names away while the kernel works with them, so that they can be read
 * neither when the call begins, as their page was never touched, nor when it
 * returns: that of a FIFO, which it opens; and that of /proc/self/exe, which
 * readlink looks up and then fails with EFAULT, as the memory for the answer
 * goes away, too (userfaultfd says when the kernel wants it). Last a buffer
 * that ends within a write, of which 6 bytes are written, and a name at address
 * 0, /tmp/null. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *fifo, *link_, *buf;
static int uffd;

static void *thief(void *unused)
{
	struct uffd_msg m;

	usleep(50000);
	munmap(fifo, 4096);
	open("/tmp/hidden-fifo", O_WRONLY);
	read(uffd, &m, sizeof m);
	munmap(link_, 4096);
	munmap(buf, 4096);
	close(uffd);
	return unused;
}

/* untouched maps a page of a file that holds text. */
static char *untouched(const char *file, const char *text)
{
	int fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *m;

	ftruncate(fd, 4096);
	pwrite(fd, text, strlen(text), 0);
	m = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	return m;
}

int main(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	pthread_t t;
	char *m;

	alarm(10);
	mkfifo("/tmp/hidden-fifo", 0600);
	fifo = untouched("/tmp/a", "/tmp/hidden-fifo");
	link_ = untouched("/tmp/b", "/proc/self/exe");
	buf = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ioctl(uffd, UFFDIO_API, &api);
	reg.range.start = (unsigned long)buf;
	reg.range.len = 4096;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		return 2;
	pthread_create(&t, 0, thief, 0);
	if (open(fifo, O_RDONLY) < 0)
		return 3;
	if (readlink(link_, buf, 100) != -1 || errno != EFAULT)
		return 4;
	pthread_join(t, 0);

	m = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(m + 4096, 4096);
	memcpy(m + 4090, "ending", 6);
	if (write(open("/tmp/short", O_WRONLY | O_CREAT, 0600), m + 4090, 100) != 6)
		return 5;
	m = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (m)
		return 6;
	__asm__ volatile("movl $0x706d742f, (%0); movl $0x6c756e2f, 4(%0); movw $0x6c, 8(%0)" : : "r"(m) : "memory");
	open(m, O_RDONLY);
	return 0;
}
