/* SPDX-License-Identifier: Apache-2.0 */
/* Executes itself three times by execveat: by a path below a directory's
 * descriptor, by the descriptor of a file that has no name any more, and by an
 * absolute path; the last one exits with 13. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

static void execute(int dir, const char *path, char *turn, int flags)
{
	char *argv[] = {"execveat", turn, 0}, *envp[] = {0};

	syscall(SYS_execveat, dir, path, argv, envp, flags);
	_exit(1);
}

int main(int argc, char **argv)
{
	int from, to;

	switch (argc > 1 ? atoi(argv[1]) : 0) {
	case 0:
		from = open("/proc/self/exe", O_RDONLY);
		to = open("/tmp/copy", O_CREAT | O_WRONLY, 0700);
		while (sendfile(to, from, 0, 1 << 20) > 0)
			;
		close(to);
		execute(open("/tmp", O_PATH | O_DIRECTORY), "copy", "1", 0);
		break;
	case 1:
		from = open("/tmp/copy", O_RDONLY);
		unlink("/tmp/copy");
		execute(from, "", "2", AT_EMPTY_PATH);
		break;
	case 2:
		execute(-1, "/usr/bin/execveat", "3", 0);
	}
	return 13;
}
