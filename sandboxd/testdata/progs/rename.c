/* SPDX-License-Identifier: Apache-2.0 */
/* Renames itself to look like a kernel thread, by prctl and in argv, and forks
 * a child that inherits the name. */
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int st;

	(void)argc;
	prctl(PR_SET_NAME, "kworker/0:1");
	strncpy(argv[0], "[kworker/0:1]", strlen(argv[0]));
	if (fork() == 0)
		_exit(access("/tmp/renamed", R_OK) ? 9 : 8);
	wait(&st);
	return 0;
}
