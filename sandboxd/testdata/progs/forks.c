/* SPDX-License-Identifier: Apache-2.0 */
/* Forks 1,000 processes, of which up to 100 live at once; each exits with the
 * last two digits of its number. */
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	int i, st;

	for (i = 0; i < 1000; i++) {
		if (i >= 100)
			wait(&st);
		if (fork() == 0)
			_exit(i % 100);
	}
	while (wait(&st) > 0)
		;
	return 0;
}
