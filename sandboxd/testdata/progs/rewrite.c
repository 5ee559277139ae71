/* SPDX-License-Identifier: Apache-2.0 */
/* A thread rewrites the name while the call that it was given to is under
 * way: open of the FIFO /tmp/evil blocks until the other thread has overwritten
 * its name with /tmp/good and opened the other end. */
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char name[64] = "/tmp/evil";

static void *other(void *unused)
{
	usleep(500000); /* that it blocks is no event */
	strcpy(name, "/tmp/good");
	open("/tmp/evil", O_WRONLY);
	return unused;
}

int main(void)
{
	pthread_t t;

	mkfifo(name, 0600);
	pthread_create(&t, 0, other, 0);
	open(name, O_RDONLY);
	pthread_join(t, 0);
	return 0;
}
