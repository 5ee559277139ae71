/* SPDX-License-Identifier: Apache-2.0 */
/* 1,000,000 calls in a tight loop: getppid, and every tenth an open of
 * /tmp/flood, which is not there. Exits with 21. */
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	int i;

	for (i = 0; i < 1000000; i++)
		if (i % 10)
			syscall(SYS_getppid);
		else
			open("/tmp/flood", O_RDONLY);
	return 21;
}
