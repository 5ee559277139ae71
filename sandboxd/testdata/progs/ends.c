/* SPDX-License-Identifier: Apache-2.0 */
/* Ends as asked: "exit N", "signal N", "orphan MS" leaves a child for MS
 * milliseconds, "sleep" closes its output and stays, and "hold" keeps reading
 * nothing until it is told how to end. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "exit";
	int n = argc > 2 ? atoi(argv[2]) : 0;

	printf("started\n");
	fflush(stdout);
	if (!strcmp(how, "exit"))
		return n;
	if (!strcmp(how, "signal")) {
		signal(n, SIG_DFL);
		kill(getpid(), n);
		pause();
	}
	if (!strcmp(how, "orphan")) {
		if (fork() == 0) {
			usleep(n * 1000);
			printf("orphan done\n");
			return 1;
		}
		return 0;
	}
	if (!strcmp(how, "sleep")) {
		close(0);
		close(1);
		close(2);
		for (;;)
			pause();
	}
	return 99;
}
