/* SPDX-License-Identifier: Apache-2.0 */
/* vfork, then exec of itself with the argument "child", which exits with 5. A
 * second vfork execs what is not there. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char *args[] = {"a child", "child", "of vfork", 0};
	int st;

	if (argc > 1 && !strcmp(argv[1], "child"))
		return 5;
	if (vfork() == 0) {
		execv("/proc/self/exe", args);
		_exit(1);
	}
	wait(&st);
	if (vfork() == 0) {
		execv("/nothing/here", args);
		_exit(6);
	}
	wait(&st);
	return 0;
}
