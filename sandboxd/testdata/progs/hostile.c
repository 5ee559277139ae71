/* SPDX-License-Identifier: Apache-2.0 */
/* What a sample can do to its machine: "bomb" forks without end, "fill" writes
 * until the disk is full, "killer" kills every process that it may, "files N"
 * makes N small files, each with other bytes, in directories of a thousand,
 * "hog" takes all memory. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int bomb(void)
{
	printf("forking\n");
	fflush(stdout);
	for (;;)
		fork();
}

static int fill(void)
{
	static char block[1 << 20];
	int fd = open("/tmp/filler", O_CREAT | O_WRONLY, 0644);
	long long n = 0;
	ssize_t w;

	memset(block, 'f', sizeof block);
	while ((w = write(fd, block, sizeof block)) > 0)
		n += w;
	printf("full after %lld bytes: %s\n", n, strerror(errno));
	return 0;
}

static int killer(void)
{
	int i;

	signal(SIGTERM, SIG_IGN);
	for (i = 0; i < 3; i++)
		kill(-1, SIGKILL);
	kill(1, SIGKILL);
	for (i = 2; i < 32768; i++)
		if (i != getpid())
			kill(i, SIGKILL);
	printf("killed\n");
	return 0;
}

static int files(int n)
{
	char path[64], text[32];
	int i, fd;

	for (i = 0; i < n; i++) {
		if (i % 1000 == 0) {
			snprintf(path, sizeof path, "/var/f%03d", i / 1000);
			mkdir(path, 0755);
		}
		snprintf(path, sizeof path, "/var/f%03d/%05d", i / 1000, i);
		fd = open(path, O_CREAT | O_WRONLY, 0644);
		if (fd < 0) {
			printf("%d files: %s\n", i, strerror(errno));
			return 1;
		}
		write(fd, text, snprintf(text, sizeof text, "file %d\n", i));
		close(fd);
	}
	printf("%d files\n", n);
	return 0;
}

static int hog(void)
{
	for (;;)
		memset(malloc(1 << 20), 1, 1 << 20);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "";

	if (!strcmp(how, "bomb"))
		return bomb();
	if (!strcmp(how, "fill"))
		return fill();
	if (!strcmp(how, "killer"))
		return killer();
	if (!strcmp(how, "files"))
		return files(atoi(argv[2]));
	if (!strcmp(how, "hog"))
		return hog();
	return 2;
}
