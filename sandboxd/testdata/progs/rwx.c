/* SPDX-License-Identifier: Apache-2.0 */
/* Runs code out of memory that is writable and executable at once; then makes
 * memory that it has written executable. */
#include <string.h>
#include <sys/mman.h>

int main(void)
{
	/* mov eax, 39 (getpid); syscall; ret */
	static const unsigned char code[] = {0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3};
	void *m = mmap(0, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *n = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(m, code, sizeof code);
	((void (*)(void))m)();
	mprotect(n, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
	return 0;
}
