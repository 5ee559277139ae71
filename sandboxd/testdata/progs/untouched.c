/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a file whose name lies on a page that was never touched: the name can
 * only be read when the call has returned. Then a name that cannot be read at
 * all, and a write whose bytes lie on such a page. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (1 << 20)

int main(void)
{
	char *m;
	int fd = open("/tmp/names", O_RDWR | O_CREAT | O_TRUNC, 0600);

	ftruncate(fd, SIZE);
	pwrite(fd, "/tmp/untouched", 15, SIZE / 2);
	pwrite(fd, "fresh bytes", 11, SIZE / 4);
	m = mmap(0, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	madvise(m, SIZE, MADV_RANDOM);
	open(m + SIZE / 2, O_RDONLY);
	open((char *)16, O_RDONLY);
	write(1, m + SIZE / 4, 11);
	return 0;
}
