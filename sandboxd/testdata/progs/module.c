/* SPDX-License-Identifier: Apache-2.0 */
/* Tries to load kernel modules that are none, and to unload one. */
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	syscall(SYS_init_module, "not a module", 12ul, "debug=1");
	syscall(SYS_finit_module, open("/etc/passwd", O_RDONLY), "hide=1", 0);
	syscall(SYS_delete_module, "netfilter", O_NONBLOCK);
	return 0;
}
