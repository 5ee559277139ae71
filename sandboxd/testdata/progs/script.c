/* SPDX-License-Identifier: Apache-2.0 */
/* Writes a script for busybox' shell and executes it: the script changes a file,
 * has another command do something, and exits with 17. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const char text[] =
	"#!/bin/busybox sh\n"
	"echo from a script >/tmp/by-script\n"
	"/bin/busybox rm /tmp/by-script\n"
	"exit 17\n";

int main(void)
{
	char *argv[] = {"/tmp/script", "argument", 0}, *envp[] = {0};
	int fd = open("/tmp/script", O_CREAT | O_WRONLY, 0700);

	write(fd, text, sizeof text - 1);
	close(fd);
	execve(argv[0], argv, envp);
	return 1;
}
