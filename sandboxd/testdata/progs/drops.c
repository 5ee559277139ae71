/* SPDX-License-Identifier: Apache-2.0 */
/* Changes the file system in every way that a collection tells apart: creates,
 * overwrites, deletes, links, makes directories, fifos and devices, names that
 * are no UTF-8 or too long for a path, holes, and the same bytes twice; and makes
 * two of the image's directories anew. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void put(const char *path, const char *text, int mode)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, mode);
	write(fd, text, strlen(text));
	fchmod(fd, mode);
	close(fd);
}

int main(void)
{
	int fd, i;
	static char block[1 << 16];

	put("/tmp/created", "created\n", 0640);
	put("/tmp/twin-a", "the same bytes", 0644);
	put("/tmp/twin-b", "the same bytes", 0644);
	put("/etc/profile", "overwritten\n", 0644);
	unlink("/etc/protocols");
	unlink("/etc/skel/.bash_logout");
	unlink("/etc/skel/.bashrc");
	unlink("/etc/skel/.profile");
	rmdir("/etc/skel");
	mkdir("/etc/skel", 0755);
	put("/etc/skel/.bashrc", "replaced\n", 0644);
	unlink("/etc/dpkg/origins/debian");
	rmdir("/etc/dpkg/origins");
	rmdir("/etc/dpkg");
	mkdir("/etc/dpkg", 0755);
	mkdir("/etc/dpkg/origins", 0755);
	put("/etc/dpkg/origins/other", "other\n", 0644);
	symlink("/etc/shadow", "/tmp/link");
	mkdir("/tmp/dir", 0711);
	put("/tmp/dir/a\nb'\"\xff", "odd name\n", 0600);
	mkfifo("/tmp/fifo", 0600);
	mknod("/tmp/device", S_IFCHR | 0600, makedev(1, 3));
	put("/tmp/empty", "", 0600);
	/* 1 MiB and a bit, not all zero */
	fd = open("/tmp/large", O_CREAT | O_WRONLY, 0644);
	for (i = 0; i < 17; i++) {
		memset(block, 'a' + i, sizeof block);
		write(fd, block, sizeof block);
	}
	close(fd);
	/* a terabyte that is a hole */
	fd = open("/tmp/hole", O_CREAT | O_WRONLY, 0644);
	ftruncate(fd, 1LL << 40);
	close(fd);
	/* one file with two names, and a path longer than the kernel takes */
	put("/tmp/linked", "linked\n", 0644);
	link("/tmp/linked", "/tmp/linked-too");
	memset(block, 'd', 255);
	block[255] = 0;
	mkdir("/var/deep", 0755);
	chdir("/var/deep");
	for (i = 0; i < 20; i++) {
		mkdir(block, 0755);
		chdir(block);
	}
	put("at-the-bottom", "deep\n", 0644);
	return 0;
}
