/* SPDX-License-Identifier: Apache-2.0 */
/* What a root can do to whatever records it, one after another, all of it within
 * its own machine: leave facts, have the init start it again, kill every process, forge output on the console,
 * on the agent's port and on its own, mount over /proc and /dev, load and unload
 * modules, write into other processes, detach BPF programs and wipe their maps,
 * and then do what nobody is to see.
 *
 * A module to load may hang behind the program's own bytes: then the file's last
 * eight bytes are its length. "often N M" only traces a child of its own and looks
 * into it N times, calls bpf M times, and says what each took. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAP_LOOKUP = 1, MAP_UPDATE = 2, MAP_NEXT_KEY = 4, PROG_NEXT = 11, MAP_NEXT = 12, MAP_FD = 14, LINK_FD = 30, LINK_NEXT = 31, LINK_DETACH = 34 };

static uint32_t attr[32];

static long bpf(int cmd) { return syscall(SYS_bpf, cmd, attr, sizeof attr); }

static void say(const char *what, long result)
{
	printf("%s: %s\n", what, result < 0 ? strerror(errno) : "done");
	fflush(stdout);
}

static void save(const char *path, const char *text)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	write(fd, text, strlen(text));
	close(fd);
}

static void before(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(4444)};
	char *argv[] = {"sh", "-c", "echo by a child >/tmp/child", 0};

	mkdir("/tmp/before", 0755);
	save("/tmp/before/fact", "known before");
	unlink("/tmp/before/fact");
	inet_pton(AF_INET, "198.51.100.9", &a.sin_addr);
	connect(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)&a, sizeof a);
	if (fork() == 0) {
		execv("/bin/sh", argv);
		_exit(1);
	}
	wait(0);
	say("facts", 0);
}

/* byInit has the init start this program. */
static void byInit(void)
{
	char self[256] = "", line[300];
	int i;

	readlink("/proc/self/exe", self, sizeof self - 1);
	snprintf(line, sizeof line, "::respawn:%s init\n", self);
	save("/etc/inittab", line);
	kill(1, SIGHUP);
	for (i = 0; i < 500 && access("/tmp/by-init", F_OK); i++)
		usleep(10000);
	say("started by init", access("/tmp/by-init", F_OK));
	save("/etc/inittab", "");
	kill(1, SIGHUP);
}

/* forge writes what would be believed if anybody took it for the agent's word. */
static void forge(int fd)
{
	static const char preamble[] = "\xff\xff\xff\xffPETRI\x00\x01\xff";
	static const char event[] = "{\"kind\":\"event\",\"name\":\"exited\",\"data\":{\"reason\":\"exited\",\"exit_code\":77}}";
	char frame[8] = {sizeof event - 1, 0, 0, 0, 1};

	write(fd, preamble, sizeof preamble - 1);
	write(fd, frame, sizeof frame);
	write(fd, event, sizeof event - 1);
	dprintf(fd, "\nPROCESS|1|1|forged|\nSYSCALL|1|openat|\"/tmp/forged\"|3\nopenat(AT_FDCWD, \"/tmp/forged\", O_RDONLY) = 3\n");
	dprintf(fd, "{\"type\":\"petri.context.sample_exited.v1\",\"data\":{\"reason\":\"exited\",\"exit_code\":77}}\n");
}

static void forgeAll(void)
{
	unsigned major = 0, minor = 0;
	FILE *f = fopen("/sys/class/virtio-ports/vport0p1/dev", "r");
	int fd;

	if (f && fscanf(f, "%u:%u", &major, &minor) == 2)
		mknod("/tmp/port", S_IFCHR | 0600, makedev(major, minor));
	say("open the port", fd = open("/tmp/port", O_WRONLY));
	if (fd >= 0)
		forge(fd);
	mknod("/tmp/console", S_IFCHR | 0600, makedev(5, 1));
	say("open the console", fd = open("/tmp/console", O_WRONLY));
	if (fd >= 0)
		forge(fd);
	mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1));
	say("open the memory", open("/tmp/mem", O_RDWR));
	forge(1);
}

static void killAll(void)
{
	pid_t victim = fork();

	if (victim == 0)
		for (;;)
			pause();
	say("kill every process", kill(-1, SIGKILL));
	waitpid(victim, 0, 0);
	say("kill the first", kill(1, SIGKILL));
}

static void modules(int fd)
{
	uint64_t size = 0;
	struct stat st;
	char *b;

	fstat(fd, &st);
	pread(fd, &size, 8, st.st_size - 8);
	if (size > 0 && size < (uint64_t)st.st_size) {
		b = malloc(size);
		pread(fd, b, size, st.st_size - 8 - size);
		say("load a module", syscall(SYS_init_module, b, size, ""));
		say("unload it", syscall(SYS_delete_module, "dummy", O_NONBLOCK));
	}
	say("load nonsense", syscall(SYS_init_module, "not a module", 12, ""));
	say("unload the network's driver", syscall(SYS_delete_module, "virtio_net", O_NONBLOCK));
}

/* wipe overwrites every map of few entries with zeros. */
static void wipe(int fd)
{
	static char zero[1 << 20];
	uint32_t key;

	for (key = 0; key < 256; key++) {
		memset(attr, 0, sizeof attr);
		attr[0] = fd;
		*(uint64_t *)&attr[2] = (uintptr_t)&key;
		*(uint64_t *)&attr[4] = (uintptr_t)zero;
		if (bpf(MAP_UPDATE) < 0)
			break;
	}
}

static void blind(void)
{
	uint32_t id;
	int n = 0, detached = 0;

	for (id = 0; memset(attr, 0, sizeof attr), attr[0] = id, bpf(LINK_NEXT) == 0;) {
		id = attr[1];
		attr[0] = id;
		attr[1] = 0;
		int fd = bpf(LINK_FD);
		memset(attr, 0, sizeof attr);
		attr[0] = fd;
		n++;
		detached += bpf(LINK_DETACH) == 0;
	}
	printf("%d links, %d detached\n", n, detached);
	for (id = 0, n = 0; memset(attr, 0, sizeof attr), attr[0] = id, bpf(MAP_NEXT) == 0; n++) {
		id = attr[1];
		attr[0] = id;
		attr[1] = 0;
		int fd = bpf(MAP_FD);
		if (fd >= 0)
			wipe(fd);
	}
	printf("%d maps\n", n);
	fflush(stdout);
}

static long since(const struct timespec *a)
{
	struct timespec b;

	clock_gettime(CLOCK_MONOTONIC, &b);
	return (b.tv_sec - a->tv_sec) * 1000000 + (b.tv_nsec - a->tv_nsec) / 1000;
}

static int often(int looks, int calls)
{
	struct timespec a;
	pid_t child = fork();
	long took = 0, held = 0;
	int i;

	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		_exit(0);
	}
	waitpid(child, 0, 0);
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (i = 0; i < looks; i++)
		ptrace(PTRACE_PEEKUSER, child, 0, 0);
	printf("a look: %ld us\n", since(&a) / looks);
	ptrace(PTRACE_CONT, child, 0, 0);
	waitpid(child, 0, 0);
	for (i = 0; i < calls; i++) {
		memset(attr, 0, sizeof attr);
		attr[0] = ~0u;
		clock_gettime(CLOCK_MONOTONIC, &a);
		bpf(PROG_NEXT);
		took = since(&a);
		if (i < 64)
			held += took;
		if (i == 63)
			printf("a held call: %ld us\n", held / 64);
	}
	printf("the last call: %ld us\n", took);
	return 0;
}

int main(int argc, char **argv)
{
	static char word[8];
	struct iovec to = {word, 4}, from = {"word", 4};
	int self = open("/proc/self/exe", O_RDONLY);

	if (argc > 1 && !strcmp(argv[1], "init")) {
		save("/tmp/by-init", "by init");
		for (;;)
			pause();
	}
	if (argc > 3 && !strcmp(argv[1], "often"))
		return often(atoi(argv[2]), atoi(argv[3]));
	before();
	byInit();
	killAll();
	forgeAll();
	say("mount over /proc", mount("none", "/proc", "tmpfs", 0, ""));
	say("mount over /dev", mount("none", "/dev", "tmpfs", 0, ""));
	/* Until here nothing has been held. */
	save("/tmp/last", "known before");
	say("write into a process", syscall(SYS_process_vm_writev, getpid(), &from, 1ul, &to, 1ul, 0ul));
	modules(self);
	blind();
	save("/tmp/after", "nobody sees this");
	say("all", 0);
	syscall(SYS_delete_module, "virtio_console", O_NONBLOCK);
	return 3;
}
