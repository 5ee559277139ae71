/* SPDX-License-Identifier: Apache-2.0 */
/* Long things: a name of 4,095 bytes, which is the longest, one of 5,000, two
 * such names and two of 2,999 in one call, and an exec of itself with 40
 * arguments of 99 bytes, with one of 5,000, and with one of 3,000. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char name[5001], arg[40][100], large[5001], *args[44];
	int i, st;

	if (argc > 1)
		return 0;
	for (i = 0; i < 5000; i++)
		name[i] = i % 2 ? 'a' + i / 2 % 26 : '/';
	open(name, O_RDONLY);
	name[4095] = 0;
	open(name, O_RDONLY);
	rename(name + 4095 - 2999, name + 4095 - 2999);
	rename(name, name);
	args[0] = argv[0];
	for (i = 0; i < 40; i++)
		args[i + 1] = memset(arg[i], 'A' + i % 26, 99);
	if (fork() == 0) {
		execv("/proc/self/exe", args);
		_exit(1);
	}
	wait(&st);
	args[1] = memset(large, 'x', 5000);
	args[2] = 0;
	if (fork() == 0) {
		execv("/proc/self/exe", args);
		_exit(1);
	}
	wait(&st);
	large[3000] = 0;
	execv("/proc/self/exe", args);
	return 1;
}
