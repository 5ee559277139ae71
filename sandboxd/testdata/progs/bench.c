/* SPDX-License-Identifier: Apache-2.0 */
/* The benchmark: 100,000 getppid, and 20,000 open and close of a file. It
 * prints the nanoseconds that each took. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(void)
{
	long long a = now(), b, c;
	int i;

	for (i = 0; i < 100000; i++)
		syscall(SYS_getppid);
	b = now();
	for (i = 0; i < 20000; i++)
		close(open("/etc/passwd", O_RDONLY));
	c = now();
	printf("%lld %lld\n", b - a, c - b);
	return 0;
}
