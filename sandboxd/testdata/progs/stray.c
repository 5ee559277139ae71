/* SPDX-License-Identifier: Apache-2.0 */
/* Goes on where nobody may look for it, and the program itself ends at once.
 * "cgroup": a thread of its child, of which the first has ended, is in the root of
 * the cgroups. "respawn": the container's init starts it. "restart": the init
 * becomes it. "kernel": the kernel starts it, outside of the container, when a
 * process crashes. Whoever is left has no output open, waits, and writes a file. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int put(const char *path, const char *text)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	return write(fd, text, strlen(text));
}

static void *late(void *path)
{
	close(0);
	close(1);
	close(2);
	sleep(2);
	_exit(put(path, "late") != 4);
}

static int cgroup(void)
{
	pthread_t t;

	mkdir("/mnt/c", 0755);
	if (mount("none", "/mnt/c", "cgroup2", 0, 0) || put("/mnt/c/cgroup.procs", "0") != 1)
		return 1;
	if (fork())
		return 0;
	pthread_create(&t, 0, late, "/late");
	return syscall(SYS_exit, 0);
}

static int kernel(const char *self)
{
	static char much[1 << 20]; /* than which the pipe to the helper takes less */
	struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
	char line[300];

	memset(much, 1, sizeof much);
	snprintf(line, sizeof line, "|/proc/%%P/root%s late /overlay/upper/late", self);
	setrlimit(RLIMIT_CORE, &all);
	if (put("/proc/sys/kernel/core_pattern", line) < 0)
		return 1;
	if (fork() == 0)
		raise(SIGSEGV);
	wait(0); /* it ends when the helper runs, and has closed the pipe */
	return 0;
}

int main(int argc, char **argv)
{
	char self[256] = "", line[300];

	readlink("/proc/self/exe", self, sizeof self - 1);
	if (!strcmp(argv[1], "late"))
		late(argc > 2 ? argv[2] : "/late");
	if (!strcmp(argv[1], "cgroup"))
		return cgroup();
	if (!strcmp(argv[1], "kernel"))
		return kernel(self);
	snprintf(line, sizeof line, "::%s:%s late\n", argv[1], self);
	put("/etc/inittab", line);
	kill(1, SIGHUP);
	if (!strcmp(argv[1], "restart"))
		kill(1, SIGQUIT);
	return 0;
}
