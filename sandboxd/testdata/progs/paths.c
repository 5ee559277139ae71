/* SPDX-License-Identifier: Apache-2.0 */
/* Names a file in every way there is: relative to a directory that chdir, fchdir
 * or a descriptor says, through dup and fork, and after rename. All of it
 * happens below /tmp/paths. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	int dir, fd, copy, st;

	mkdir("/tmp/paths", 0700);
	chdir("/tmp/paths");
	fd = open("one", O_RDWR | O_CREAT, 0600);
	write(fd, "12345", 5);
	copy = dup(fd);
	write(copy, "678", 3);
	mkdir("sub", 0755);
	dir = open("sub", O_RDONLY | O_DIRECTORY);
	write(openat(dir, "../two", O_WRONLY | O_CREAT, 0644), "x", 1);
	fchdir(dir);
	rename("../one", "three");
	symlink("three", "link");
	link("three", "hard");
	chmod("three", 04755);
	if (fork() == 0) {
		chdir("/");
		unlinkat(dir, "hard", 0);
		_exit(0);
	}
	wait(&st);
	unlink("link");
	open("./nowhere", O_RDONLY);
	open("/tmp/paths//sub/./../two", O_RDONLY);
	truncate("three", 2);
	rmdir("/tmp/paths/sub");
	return 0;
}
