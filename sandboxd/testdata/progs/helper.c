/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the kernel start a program: it names itself in core_pattern and
 * crashes. What the kernel starts, with the argument "helped", opens
 * /tmp/helped and exits with 13. The name is that in the sample's root. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rlimit max = {RLIM_INFINITY, RLIM_INFINITY};
	char line[256];
	int fd;

	if (argc > 1 && !strcmp(argv[1], "helped")) {
		open("/tmp/helped", O_RDONLY);
		return 13;
	}
	setrlimit(RLIMIT_CORE, &max);
	snprintf(line, sizeof line, "|/rom%s helped", argv[0]);
	fd = open("/proc/sys/kernel/core_pattern", O_WRONLY);
	write(fd, line, strlen(line));
	abort();
}
