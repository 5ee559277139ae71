/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests trace: subject WAY does what its function of that name does, and
 * subject stage PROGRAM ARG… waits until its descriptor 3 says something and
 * executes the program.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;

static void reap(void)
{
	while (waitpid(-1, NULL, __WALL) > 0)
		;
}

/* One child of each kind, which end in different ways. */
static void forks(void)
{
	struct clone_args args = {.exit_signal = SIGCHLD};

	if (syscall(SYS_fork) == 0)
		_exit(1);
	reap();
	if (vfork() == 0)
		_exit(2);
	reap();
	if (syscall(SYS_clone, CLONE_FILES | CLONE_FS | SIGCHLD, 0, 0, 0, 0) == 0)
		raise(SIGTERM);
	reap();
	if (syscall(SYS_clone3, &args, sizeof(args)) == 0)
		_exit(4);
	reap();
}

static void *idle(void *p)
{
	if (p)
		for (;;)
			pause();
	return NULL;
}

/* A thread that ends before its process, and one that ends with it. */
static void threads(void)
{
	pthread_t t;

	pthread_create(&t, NULL, idle, NULL);
	pthread_join(t, NULL);
	pthread_create(&t, NULL, idle, self);
	exit(5);
}

static void *leave(void *p)
{
	char *argv[] = {"renamed", "quick", NULL}, *envp[] = {"A=b", NULL};

	(void)p;
	execve(self, argv, envp);
	return NULL;
}

/* A program that another thread than the first executes. */
static void threadexec(void)
{
	pthread_t t;

	pthread_create(&t, NULL, leave, NULL);
	for (;;)
		pause();
}

static void quick(void) { _exit(7); }

static void noted(int sig) { (void)sig; }

/* Signals that are handled, that stop and that kill. */
static void signals(void)
{
	signal(SIGUSR1, noted);
	raise(SIGUSR1);
	kill(getpid(), SIGSTOP);
	kill(getpid(), SIGKILL);
}

static void blocked(void)
{
	write(1, ".", 1);
	pause();
}

/* Calls with something to capture, good and bad. */
static void calls(void)
{
	static char big[5000];
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(6667)};
	struct iovec v[6];
	struct msghdr m = {.msg_name = &in, .msg_namelen = sizeof(in), .msg_iov = v, .msg_iovlen = 2};
	char *many[40], *page;
	int fds[2], i;

	memset(big, 'x', sizeof(big) - 1);
	inet_pton(AF_INET, "127.0.0.1", &in.sin_addr);
	page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(page + 4096, 4096);

	open("/nowhere/at all", O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	open(big, O_RDONLY);
	open((char *)16, O_RDONLY);
	strcpy(page + 4090, "/ends"); /* with the page */
	unlink(page + 4090);
	memcpy(page + 4090, "noends", 6);
	unlink(page + 4090);
	pipe(fds);
	write(fds[1], big, 300);
	read(fds[0], big, 300);
	write(fds[1], "one two three four five six", 27);
	for (i = 0; i < 6; i++)
		v[i] = (struct iovec){big + 2 * i, 2};
	readv(fds[0], v, 6);
	writev(fds[1], v, 6);
	v[0].iov_base = page + 4096;
	writev(fds[1], v, 1);
	v[0].iov_base = big;
	close(fds[1]);
	write(fds[1], "gone", 4);
	i = socket(AF_INET, SOCK_DGRAM, 0);
	sendmsg(i, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	connect(i, (struct sockaddr *)&in, sizeof(in));
	connect(i, NULL, 16);
	getpeername(i, (struct sockaddr *)&in, &(socklen_t){sizeof(in)});
	syscall(SYS_connect, i, &in, 0x7fffffff);
	for (i = 0; i < 39; i++)
		many[i] = "argument";
	many[39] = NULL;
	execve("/nowhere", many, many + 39);
	syscall(4095L, 1, 2, 3, 4, 5, 6);
}

static const struct {
	const char *name;
	void (*run)(void);
} ways[] = {
	{"forks", forks}, {"threads", threads}, {"threadexec", threadexec}, {"quick", quick},
	{"signals", signals}, {"blocked", blocked}, {"calls", calls},
};

int main(int argc, char **argv)
{
	unsigned i;
	char c;

	if (argc < 2)
		return 100;
	self = argv[0];
	if (!strcmp(argv[1], "stage")) {
		if (argc < 3 || read(3, &c, 1) != 1)
			return 101;
		close(3);
		execve(argv[2], argv + 2, (char *[]){"B=c", NULL});
		return 102;
	}
	for (i = 0; i < sizeof(ways) / sizeof(*ways); i++)
		if (!strcmp(argv[1], ways[i].name)) {
			ways[i].run();
			return 0;
		}
	return 103;
}
