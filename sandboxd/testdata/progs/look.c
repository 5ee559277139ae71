/* SPDX-License-Identifier: Apache-2.0 */
/* Looks around as a suspicious sample does and prints what it finds, one
 * "what: text" a line: everything that /proc says of every process and of the
 * kernel's mounts, all of /dev, the virtio ports, its own environment and
 * descriptors. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

/* Prints a file with its lines, and its NUL bytes as spaces. */
static void show(const char *path)
{
	static char buf[1 << 16];
	int fd = open(path, O_RDONLY | O_NONBLOCK), n, total = 0;
	char *line, *end;

	if (fd < 0) {
		printf("%s: unreadable: %m\n", path);
		return;
	}
	while (total < (int)sizeof buf - 1 && (n = read(fd, buf + total, sizeof buf - 1 - total)) > 0)
		total += n;
	close(fd);
	for (n = 0; n < total; n++)
		if (!buf[n])
			buf[n] = ' ';
	buf[total] = 0;
	if (!total)
		printf("%s: \n", path);
	for (line = buf; *line; line = end) {
		end = line + strcspn(line, "\n");
		printf("%s: %.*s\n", path, (int)(end - line), line);
		if (*end)
			end++;
	}
}

static void show_link(const char *path)
{
	char to[4096];
	int n = readlink(path, to, sizeof to);

	if (n < 0)
		printf("%s: unreadable: %m\n", path);
	else
		printf("%s: %.*s\n", path, n, to);
}

static void walk(const char *dir, int depth, int links)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[4096];
	struct stat st;

	if (!d) {
		printf("%s: unreadable: %m\n", dir);
		return;
	}
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (links) {
			show_link(path);
			continue;
		}
		if (lstat(path, &st) < 0)
			continue;
		printf("%s: mode %o device %d\n", path, st.st_mode, (int)st.st_rdev);
		if (S_ISDIR(st.st_mode) && depth > 0)
			walk(path, depth - 1, 0);
	}
	closedir(d);
}

int main(void)
{
	static const char *files[] = {"comm", "cmdline", "environ", "status", "stat", "maps", "mountinfo", "mounts",
		"cgroup", "wchan", "limits", "oom_score_adj", "loginuid", "attr/current", "timens_offsets"};
	static const char *links[] = {"exe", "cwd", "root"};
	static const char *kernel[] = {"/proc/mounts", "/proc/cmdline", "/proc/filesystems", "/proc/modules",
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe",
		"/proc/sys/kernel/hotplug", "/proc/net/unix", "/proc/locks", "/proc/swaps", "/proc/keys",
		"/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf"};
	char path[4096];
	DIR *d = opendir("/proc");
	struct dirent *e;
	unsigned i;

	for (i = 0; environ[i]; i++)
		printf("my environ: %s\n", environ[i]);
	walk("/proc/self/fd", 0, 1);
	while ((e = readdir(d))) {
		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		printf("process: %s\n", e->d_name);
		for (i = 0; i < sizeof files / sizeof *files; i++) {
			snprintf(path, sizeof path, "/proc/%s/%s", e->d_name, files[i]);
			show(path);
		}
		for (i = 0; i < sizeof links / sizeof *links; i++) {
			snprintf(path, sizeof path, "/proc/%s/%s", e->d_name, links[i]);
			show_link(path);
		}
		snprintf(path, sizeof path, "/proc/%s/fd", e->d_name);
		walk(path, 0, 1);
		snprintf(path, sizeof path, "/proc/%s/task", e->d_name);
		walk(path, 0, 0);
	}
	for (i = 0; i < sizeof kernel / sizeof *kernel; i++)
		show(kernel[i]);
	walk("/dev", 3, 0);
	walk("/", 0, 0);
	walk("/run", 2, 0);
	walk("/tmp", 2, 0);
	walk("/mnt", 2, 0);
	walk("/sys/class/virtio-ports", 0, 1);
	if ((d = opendir("/sys/class/virtio-ports")))
		while ((e = readdir(d)))
			if (e->d_name[0] != '.') {
				snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", e->d_name);
				show(path);
			}
	printf("done\n");
	return 0;
}
