/* SPDX-License-Identifier: Apache-2.0 */
/* Kills a child that sleeps, and then is itself killed by abort. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	int st, pid = fork();

	if (pid == 0) {
		sleep(100);
		_exit(0);
	}
	usleep(50000);
	kill(pid, SIGTERM);
	wait(&st);
	abort();
}
