/* SPDX-License-Identifier: Apache-2.0 */
/* A thread that is not the first execs: it takes the process over, and its
 * number changes. What it becomes, with the argument "again", opens /tmp/after
 * and exits with 12. */
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

static void *other(void *unused)
{
	char *args[] = {"threadexec", "again", 0};

	usleep(20000);
	execv("/proc/self/exe", args);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t t;

	(void)argv;
	if (argc > 1) {
		open("/tmp/after", O_RDONLY);
		return 12;
	}
	pthread_create(&t, 0, other, 0);
	for (;;)
		pause();
}
