/* SPDX-License-Identifier: Apache-2.0 */
/* Prints what it was started with: arguments, environment, directory, ids,
 * open descriptors, signals and what it reads from standard input. */
#include <dirent.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
	char buf[4096];
	gid_t groups[64];
	sigset_t mask;
	struct stat st;
	int i, n, blocked = 0, ignored = 0;
	size_t got = 0;

	for (i = 0; i < argc; i++)
		printf("arg %d=%s\n", i, argv[i]);
	for (i = 0; environ[i]; i++)
		printf("env %s\n", environ[i]);
	printf("cwd %s\n", getcwd(buf, sizeof buf));
	printf("ids %d %d %d %d\n", getuid(), geteuid(), getgid(), getegid());
	printf("groups %d\n", getgroups(64, groups));
	printf("session %d\n", getsid(0) == getpid());
	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (i = 1; i < 32; i++) {
		struct sigaction sa;
		blocked += sigismember(&mask, i) > 0;
		ignored += sigaction(i, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN;
	}
	printf("signals %d blocked %d ignored\n", blocked, ignored);
	for (i = 0; i < 256; i++)
		if (fstat(i, &st) == 0)
			printf("fd %d %s\n", i, S_ISFIFO(st.st_mode) ? "pipe" : S_ISCHR(st.st_mode) ? "device" : "other");
	while ((n = read(0, buf, sizeof buf)) > 0) {
		if (got == 0)
			printf("stdin starts %.*s\n", n < 32 ? n : 32, buf);
		got += n;
	}
	printf("stdin has %zu bytes\n", got);
	fprintf(stderr, "this is stderr\n");
	return 0;
}
