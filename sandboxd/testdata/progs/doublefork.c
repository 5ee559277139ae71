/* SPDX-License-Identifier: Apache-2.0 */
/* A daemon's double fork: the first child, in a session of its own, forks and
 * exits with 4; the grandchild, which asks before and after who its parent is,
 * writes /tmp/daemon and exits with 7 when that one and the program itself,
 * which exits with 2, have gone. */
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	int st, go[2];

	pipe(go);
	if (fork() == 0) {
		setsid();
		if (fork() == 0) {
			getppid();
			write(go[1], "", 1);
			usleep(100000);
			getppid();
			write(open("/tmp/daemon", O_WRONLY | O_CREAT, 0600), "alive", 5);
			_exit(7);
		}
		read(go[0], &st, 1);
		_exit(4);
	}
	wait(&st);
	return 2;
}
