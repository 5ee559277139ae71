// SPDX-License-Identifier: Apache-2.0
//
// A benign program that does what a report can show: it starts processes,
// writes, renames and deletes files, asks for addresses that nobody answers
// at, and prints what it does. It is the sample of make demo.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_file(const char *path, const char *text, int mode)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, mode);
	if (fd < 0) {
		perror(path);
		return;
	}
	if (write(fd, text, strlen(text)) < 0)
		perror(path);
	close(fd);
}

static void try_connect(const char *address, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, address, &to.sin_addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	connect(fd, (struct sockaddr *)&to, sizeof to);
	printf("asked for %s port %d\n", address, port);
	close(fd);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("hello from the guest, I am process %d\n", getpid());

	write_file("/tmp/.config", "interval=60\n", 0644);
	write_file("/tmp/.payload", "#!/bin/sh\necho payload ran as $(id -un)\nuname -r\n", 0755);
	rename("/tmp/.config", "/etc/demo.conf");
	write_file("/tmp/gone", "deleted again\n", 0600);
	unlink("/tmp/gone");
	if (open("/etc/no-such-file", O_RDONLY) < 0)
		perror("/etc/no-such-file");

	pid_t pid = fork();
	if (pid == 0) {
		execl("/bin/sh", "sh", "/tmp/.payload", (char *)NULL);
		_exit(127);
	}
	waitpid(pid, NULL, 0);

	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_NAME, "kworker/0:1");
		usleep(100 * 1000);
		_exit(3);
	}

	try_connect("198.51.100.7", 23);
	try_connect("203.0.113.9", 8080);
	waitpid(pid, NULL, 0);
	printf("done\n");
	return 0;
}
