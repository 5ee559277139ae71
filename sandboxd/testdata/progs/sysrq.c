/* SPDX-License-Identifier: Apache-2.0 */
/* Writes its argument to /proc/sysrq-trigger: b resets the machine, o powers
 * it off and c makes the kernel panic. "reboot" calls reboot(2) instead. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd;

	if (argc < 2)
		return 2;
	if (!strcmp(argv[1], "reboot")) {
		reboot(RB_AUTOBOOT);
		perror("reboot");
		return 1;
	}
	fd = open("/proc/sysrq-trigger", O_WRONLY);
	if (fd < 0 || write(fd, argv[1], 1) != 1) {
		perror("/proc/sysrq-trigger");
		return 1;
	}
	sleep(20);
	return 3;
}
