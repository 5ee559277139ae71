/* SPDX-License-Identifier: Apache-2.0 */
/* A daemon's double fork: the first child, in a session of its own, forks and
 * exits with 4; the grandchild writes /tmp/daemon and exits with 7 after its
 * parent and the program itself, which exits with 2, have gone. */
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	int st;

	if (fork() == 0) {
		setsid();
		if (fork() == 0) {
			usleep(100000);
			write(open("/tmp/daemon", O_WRONLY | O_CREAT, 0600), "alive", 5);
			_exit(7);
		}
		_exit(4);
	}
	wait(&st);
	return 2;
}
