/* SPDX-License-Identifier: Apache-2.0 */
/* A 64-bit program that calls the kernel as a 32-bit one would, by int 0x80:
 * open and write by i386's numbers, connect to 203.0.113.7:6667 by socketcall;
 * and getpid by its own numbers in between. Exits with 3. */
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static long int80(long nr, long a, long b, long c)
{
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
	return r;
}

int main(void)
{
	/* Pointers must fit in 32 bits. */
	char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in *to = (void *)(low + 512);
	unsigned *args = (void *)(low + 1024);
	long fd, s;

	strcpy(low, "/tmp/int80.txt");
	strcpy(low + 256, "by int 0x80");
	fd = int80(5, (long)low, 0102, 0600);
	syscall(SYS_getpid);
	int80(4, fd, (long)(low + 256), 11);
	s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	to->sin_family = AF_INET;
	to->sin_port = htons(6667);
	to->sin_addr.s_addr = htonl(0xcb007107);
	args[0] = s;
	args[1] = (unsigned)(long)to;
	args[2] = sizeof *to;
	int80(102, 3, (long)args, 0);
	int80(1, 3, 0, 0);
	return 0;
}
