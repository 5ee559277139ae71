/* SPDX-License-Identifier: Apache-2.0 */
/* Forks 1,000 processes, or as many as the first argument says, of which up to
 * 100, or as many as the second says, live at once; each exits with the last
 * two digits of its number. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1000, live = argc > 2 ? atoi(argv[2]) : 100, i, st, go[2];
	char c;

	/* The first ones wait until as many live as should. */
	pipe(go);
	for (i = 0; i < n; i++) {
		if (i >= live)
			wait(&st);
		if (fork() == 0) {
			close(go[1]);
			if (i < live)
				read(go[0], &c, 1);
			_exit(i % 100);
		}
		if (i == live - 1)
			close(go[1]);
	}
	while (wait(&st) > 0)
		;
	return 0;
}
