/* SPDX-License-Identifier: Apache-2.0 */
/* Fileless execution: copies itself into a memfd called "harmless" and execs
 * that with the argument "again", which exits with 11. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char *args[] = {"[kthreadd]", "again", 0}, *env[] = {"SECRET=1", 0};
	int fd, self;

	(void)argv;
	if (argc > 1)
		return 11;
	fd = memfd_create("harmless", MFD_CLOEXEC);
	self = open("/proc/self/exe", O_RDONLY);
	while (sendfile(fd, self, 0, 1 << 20) > 0)
		;
	fexecve(fd, args, env);
	return 1;
}
