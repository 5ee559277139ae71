/* SPDX-License-Identifier: Apache-2.0 */
/* Connects to 203.0.113.8:6668 by int 0x80 and socketcall, whose arguments and
 * address lie on pages that were never touched; and a socketcall whose
 * arguments are nowhere. */
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static long int80(long nr, long a, long b, long c)
{
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
	return r;
}

int main(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(6668), .sin_addr.s_addr = htonl(0xcb007108)};
	int fd = open("/tmp/mux", O_RDWR | O_CREAT | O_TRUNC, 0600);
	unsigned args[3];
	char *low;

	ftruncate(fd, 1 << 20);
	low = mmap(0, 1 << 20, PROT_READ, MAP_SHARED | MAP_32BIT, fd, 0);
	madvise(low, 1 << 20, MADV_RANDOM);
	args[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	args[1] = (unsigned)(long)(low + (1 << 19));
	args[2] = sizeof to;
	pwrite(fd, args, sizeof args, 0);
	pwrite(fd, &to, sizeof to, 1 << 19);
	int80(102, 3, (long)low, 0);
	int80(102, 3, 0x1000, 0);
	return 0;
}
