/* SPDX-License-Identifier: Apache-2.0 */
/* A bot's way into the background: forks, leaves its session, forks again, deletes
 * itself, takes a kernel thread's name in /proc/PID/comm and cmdline, and goes on
 * as the init's child, which writes /tmp/bot and exits with 21. The program
 * itself exits with 0 at once. */
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char self[256] = "";
	int i, fd, gone[2];
	char c;

	pipe(gone);
	if (fork())
		return 0;
	setsid();
	if (fork())
		_exit(0);
	close(gone[1]);
	read(gone[0], &c, 1); /* both have gone */
	umask(0);
	chdir("/");
	readlink("/proc/self/exe", self, sizeof self - 1);
	unlink(self);
	prctl(PR_SET_NAME, "kworker/u2:1");
	for (i = 0; i < argc; i++)
		memset(argv[i], 0, strlen(argv[i]));
	fd = open("/tmp/bot", O_CREAT | O_WRONLY, 0600);
	write(fd, "in the background", 17);
	return 21;
}
