/* SPDX-License-Identifier: Apache-2.0 */
/* Waits for ever: its child in accept on port 4444, a thread in open of a FIFO,
 * itself in pause. */
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void *other(void *unused)
{
	mkfifo("/tmp/silent", 0600);
	open("/tmp/silent", O_RDONLY);
	return unused;
}

int main(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(4444)};
	pthread_t t;
	int s;

	if (fork() == 0) {
		s = socket(AF_INET, SOCK_STREAM, 0);
		bind(s, (void *)&in, sizeof in);
		listen(s, 1);
		accept(s, 0, 0);
	}
	pthread_create(&t, 0, other, 0);
	for (;;)
		pause();
}
