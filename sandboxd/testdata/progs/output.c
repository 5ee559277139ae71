/* SPDX-License-Identifier: Apache-2.0 */
/* Prints the given number of MiB to standard output, and as many bytes as its
 * second argument says to standard error. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char buf[1 << 20];

static int put(int fd, long long n)
{
	while (n > 0) {
		ssize_t w = write(fd, buf, n < (long long)sizeof buf ? n : (long long)sizeof buf);
		if (w <= 0)
			return 1;
		n -= w;
	}
	return 0;
}

int main(int argc, char **argv)
{
	long long mib = argc > 1 ? atoll(argv[1]) : 1, err = argc > 2 ? atoll(argv[2]) : 0;

	memset(buf, 'x', sizeof buf);
	return put(2, err) || put(1, mib << 20);
}
