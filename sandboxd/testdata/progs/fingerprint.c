// SPDX-License-Identifier: Apache-2.0
//
// Prints what an evasive program can read of its machine, one name=value per
// line. Two guests that print the same value of a field look the same there:
// docs/threat-model.md lists the fields that are the same in every guest, and
// a test compares. What is long is printed as a hash.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <cpuid.h>
#include <dirent.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
	const unsigned char *b = p;
	while (n--)
		h = (h ^ *b++) * 0x100000001b3u;
	return h;
}

#define FNV 0xcbf29ce484222325u

static void text(const char *name, const char *value)
{
	printf("%s=", name);
	for (; *value; value++)
		putchar(*value < ' ' || *value == 0x7f ? ' ' : *value);
	putchar('\n');
}

static void number(const char *name, long long v) { printf("%s=%lld\n", name, v); }
static void hash(const char *name, uint64_t h) { printf("%s=%016llx\n", name, (unsigned long long)h); }

static char big[1 << 20];

// slurp reads a file, or says why not.
static size_t slurp(const char *path)
{
	size_t n = 0;
	ssize_t k = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return snprintf(big, sizeof big, "(%m)");
	while (n < sizeof big - 1 && (k = read(fd, big + n, sizeof big - 1 - n)) > 0)
		n += k;
	if (k < 0 && n == 0)
		n = snprintf(big, sizeof big, "(%m)");
	close(fd);
	big[n] = 0;
	return n;
}

// file prints a short file's text, with its last newline off.
static void file(const char *name, const char *path)
{
	size_t n = slurp(path);
	if (n && big[n - 1] == '\n')
		big[n - 1] = 0;
	text(name, big);
}

static void file_hash(const char *name, const char *path)
{
	size_t n = slurp(path);
	hash(name, fnv(FNV, big, n));
}

// word prints what follows key in a file, up to the line's end.
static void word(const char *name, const char *path, const char *key)
{
	slurp(path);
	char *p = strstr(big, key);
	if (!p) {
		text(name, "(none)");
		return;
	}
	p += strlen(key);
	p += strspn(p, " \t:");
	p[strcspn(p, "\n")] = 0;
	text(name, p);
}

// names prints a directory's names, sorted.
static void names(const char *name, const char *dir)
{
	struct dirent **list;
	int n = scandir(dir, &list, NULL, alphasort);
	printf("%s=", name);
	if (n < 0)
		printf("(%m)");
	for (int i = 0; i < n; i++)
		if (list[i]->d_name[0] != '.')
			printf("%s ", list[i]->d_name);
	putchar('\n');
}

static void clocks(void)
{
	struct timespec t;
	struct timeval v;
	static const struct { const char *name; clockid_t id; } list[] = {
		{"clock_realtime", CLOCK_REALTIME}, {"clock_monotonic", CLOCK_MONOTONIC},
		{"clock_boottime", CLOCK_BOOTTIME}, {"clock_monotonic_raw", CLOCK_MONOTONIC_RAW},
		{"clock_tai", CLOCK_TAI}, {"clock_process", CLOCK_PROCESS_CPUTIME_ID},
	};
	for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
		clock_gettime(list[i].id, &t);
		printf("%s=%lld.%09ld\n", list[i].name, (long long)t.tv_sec, t.tv_nsec);
	}
	gettimeofday(&v, NULL);
	printf("gettimeofday=%lld.%06ld\n", (long long)v.tv_sec, (long)v.tv_usec);
	hash("rdtsc", __builtin_ia32_rdtsc());
	file("uptime", "/proc/uptime");
	struct sysinfo s;
	sysinfo(&s);
	number("sysinfo_uptime", s.uptime);
	word("stat_btime", "/proc/stat", "btime");
	file("rtc", "/sys/class/rtc/rtc0/since_epoch");
	file("clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource");
}

static void randomness(void)
{
	unsigned char b[16];
	int fd = open("/dev/urandom", O_RDONLY);
	if (fd < 0 || read(fd, b, sizeof b) != sizeof b)
		memset(b, 0, sizeof b);
	hash("urandom", fnv(FNV, b, sizeof b));
	if (getrandom(b, sizeof b, 0) != sizeof b)
		memset(b, 0, sizeof b);
	hash("getrandom", fnv(FNV, b, sizeof b));
	hash("at_random", fnv(FNV, (void *)getauxval(AT_RANDOM), 16));
	file("random_uuid", "/proc/sys/kernel/random/uuid");
	file("boot_id", "/proc/sys/kernel/random/boot_id");
	file("entropy_avail", "/proc/sys/kernel/random/entropy_avail");
	hash("aslr_stack", (uintptr_t)&b);
	hash("aslr_vdso", getauxval(AT_SYSINFO_EHDR));
	hash("aslr_heap", (uintptr_t)sbrk(0));
	hash("aslr_mmap", (uintptr_t)mmap(NULL, 1 << 24, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void identity(void)
{
	struct utsname u;
	uname(&u);
	text("hostname", u.nodename);
	text("domainname", u.domainname);
	text("kernel_release", u.release);
	text("kernel_version", u.version);
	file("etc_hostname", "/etc/hostname");
	file("machine_id", "/etc/machine-id");
	file_hash("etc_hosts", "/etc/hosts");
	file_hash("etc_passwd", "/etc/passwd");
	file("os_release", "/etc/os-release");
	file("kernel_cmdline", "/proc/cmdline");
	file("kernel_tainted", "/proc/sys/kernel/tainted");
	number("uid", getuid());
	number("euid", geteuid());
	word("capabilities", "/proc/self/status", "CapEff");
	word("seccomp", "/proc/self/status", "Seccomp");
	word("tracer_pid", "/proc/self/status", "TracerPid");
	uint64_t h = FNV;
	for (char **e = environ; *e; e++)
		h = fnv(h, *e, strlen(*e) + 1);
	hash("environ", h);
	char *cwd = getcwd(big, sizeof big);
	text("cwd", cwd ? cwd : "(none)");
	number("tty", isatty(0) | isatty(1) << 1 | isatty(2) << 2);
}

static void processes(void)
{
	number("pid", getpid());
	number("ppid", getppid());
	number("sid", getsid(0));
	number("pgid", getpgrp());
	file("last_pid", "/proc/sys/kernel/ns_last_pid");
	file("pid_max", "/proc/sys/kernel/pid_max");
	file("loadavg", "/proc/loadavg");
	word("context_switches", "/proc/stat", "ctxt");
	struct dirent **list;
	int n = scandir("/proc", &list, NULL, alphasort), count = 0;
	char who[4096] = "";
	for (int i = 0; i < n; i++) {
		if (list[i]->d_name[0] < '0' || list[i]->d_name[0] > '9')
			continue;
		count++;
		char path[300];
		snprintf(path, sizeof path, "/proc/%s/comm", list[i]->d_name);
		slurp(path);
		strncat(who, big, 32);
	}
	number("visible_processes", count);
	text("visible_names", who);
	file("init_comm", "/proc/1/comm");
	file_hash("init_cmdline", "/proc/1/cmdline");
	word("start_time", "/proc/self/stat", ") ");
	file("cgroup", "/proc/self/cgroup");
	static const char *ns[] = {"mnt", "pid", "uts", "ipc", "net", "user", "cgroup", "time"};
	for (size_t i = 0; i < sizeof ns / sizeof *ns; i++) {
		char path[64], name[32];
		snprintf(path, sizeof path, "/proc/self/ns/%s", ns[i]);
		snprintf(name, sizeof name, "namespace_%s", ns[i]);
		ssize_t k = readlink(path, big, 100);
		big[k < 0 ? 0 : k] = 0;
		text(name, big);
	}
}

static void network(void)
{
	struct ifaddrs *list;
	if (getifaddrs(&list))
		return;
	for (struct ifaddrs *a = list; a; a = a->ifa_next) {
		char name[64], value[64] = "";
		if (!a->ifa_addr || a->ifa_flags & IFF_LOOPBACK)
			continue;
		if (a->ifa_addr->sa_family == AF_PACKET) {
			struct sockaddr_ll *l = (void *)a->ifa_addr;
			snprintf(name, sizeof name, "mac_%s", a->ifa_name);
			for (int i = 0; i < 6; i++)
				snprintf(value + 3 * i, 4, "%02x:", l->sll_addr[i]);
			text(name, value);
			// What ethtool -P asks for: the address that the device was built with.
			struct { uint32_t cmd, size; unsigned char data[32]; } perm = {0x20, 32, {0}};
			struct ifreq r = {.ifr_data = (void *)&perm};
			strncpy(r.ifr_name, a->ifa_name, IFNAMSIZ - 1);
			int fd = socket(AF_INET, SOCK_DGRAM, 0);
			if (ioctl(fd, 0x8946, &r) == 0) {
				for (int i = 0; i < 6; i++)
					snprintf(value + 3 * i, 4, "%02x:", perm.data[i]);
				snprintf(name, sizeof name, "mac_permanent_%s", a->ifa_name);
				text(name, value);
			}
			close(fd);
		} else if (a->ifa_addr->sa_family == AF_INET) {
			snprintf(name, sizeof name, "ip_%s", a->ifa_name);
			text(name, inet_ntop(AF_INET, &((struct sockaddr_in *)a->ifa_addr)->sin_addr, value, sizeof value));
		}
	}
	file_hash("routes", "/proc/net/route");
	file("resolv_conf", "/etc/resolv.conf");
	file_hash("arp", "/proc/net/arp");
	file_hash("sockets", "/proc/net/unix");
	names("interfaces", "/sys/class/net");
}

static void hardware(void)
{
	unsigned a, b, c, d;
	char id[13] = "";
	__cpuid(0, a, b, c, d);
	memcpy(id, &b, 4), memcpy(id + 4, &d, 4), memcpy(id + 8, &c, 4);
	text("cpuid_vendor", id);
	__cpuid(1, a, b, c, d);
	number("cpuid_hypervisor", c >> 31);
	memset(id, 0, sizeof id);
	__cpuid(0x40000000, a, b, c, d);
	memcpy(id, &b, 4), memcpy(id + 4, &c, 4), memcpy(id + 8, &d, 4);
	text("cpuid_hypervisor_vendor", id);
	word("cpu_model", "/proc/cpuinfo", "model name");
	word("cpu_mhz", "/proc/cpuinfo", "cpu MHz");
	word("bogomips", "/proc/cpuinfo", "bogomips");
	word("cpu_flags_list", "/proc/cpuinfo", "flags");
	number("cpus", sysconf(_SC_NPROCESSORS_CONF));
	word("memory_total", "/proc/meminfo", "MemTotal");
	static const char *dmi[] = {"sys_vendor", "product_name", "product_version", "product_serial", "product_uuid", "bios_vendor", "bios_version", "bios_date", "chassis_vendor", "board_vendor"};
	for (size_t i = 0; i < sizeof dmi / sizeof *dmi; i++) {
		char path[64], name[32];
		snprintf(path, sizeof path, "/sys/class/dmi/id/%s", dmi[i]);
		snprintf(name, sizeof name, "dmi_%s", dmi[i]);
		file(name, path);
	}
	printf("acpi_oem=");
	slurp("/sys/firmware/acpi/tables/DSDT");
	printf("%.6s %.8s\n", big + 10, big + 16);
	struct dirent **list;
	int n = scandir("/sys/bus/pci/devices", &list, NULL, alphasort);
	printf("pci=");
	for (int i = 0; i < n; i++) {
		char path[400];
		if (list[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vendor", list[i]->d_name);
		slurp(path);
		printf("%.4s:", big + 2);
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/device", list[i]->d_name);
		slurp(path);
		printf("%.4s ", big + 2);
	}
	putchar('\n');
	names("virtio", "/sys/bus/virtio/devices");
	names("virtio_ports", "/sys/class/virtio-ports");
	names("block_devices", "/sys/class/block");
	names("input_devices", "/sys/class/input");
	names("sound_cards", "/sys/class/sound");
	names("thermal", "/sys/class/thermal");
	names("power", "/sys/class/power_supply");
	file_hash("interrupts", "/proc/interrupts");
	file_hash("ioports", "/proc/ioports");
	file_hash("iomem", "/proc/iomem");
	file("modules", "/proc/modules");
	file_hash("kallsyms", "/proc/kallsyms");
	file_hash("vmstat", "/proc/vmstat");
}

static void files(void)
{
	struct stat st;
	struct statfs fs;
	static const struct { const char *name, *path; } list[] = {
		{"root", "/"}, {"passwd", "/etc/passwd"}, {"machine_id", "/etc/machine-id"},
		{"tmp", "/tmp"}, {"dev_null", "/dev/null"}, {"busybox", "/bin/busybox"},
	};
	for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
		if (stat(list[i].path, &st))
			continue;
		printf("inode_%s=%llu\n", list[i].name, (unsigned long long)st.st_ino);
		printf("device_%s=%llx\n", list[i].name, (unsigned long long)st.st_dev);
		printf("ctime_%s=%lld.%09ld\n", list[i].name, (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
		printf("mtime_%s=%lld.%09ld\n", list[i].name, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	}
	file("mounts", "/proc/self/mounts");
	if (!statfs("/", &fs)) {
		number("root_blocks", fs.f_blocks);
		number("root_free", fs.f_bfree);
		number("root_files_free", fs.f_ffree);
		hash("root_type", fs.f_type);
	}
	names("root_names", "/");
	names("dev_names", "/dev");
	names("home_names", "/root");
	names("tmp_names", "/tmp");
	names("log_names", "/var/log");
	names("open_files", "/proc/self/fd");
	char target[300];
	for (int fd = 0; fd < 3; fd++) {
		char path[32], name[32];
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		snprintf(name, sizeof name, "descriptor_%d", fd);
		ssize_t k = readlink(path, target, sizeof target - 1);
		target[k < 0 ? 0 : k] = 0;
		text(name, target);
	}
	file_hash("kernel_log", "/dev/kmsg");
	number("bpf_programs", ({
		// BPF_PROG_GET_NEXT_ID: how many programs are loaded.
		struct { uint32_t start, next, flags; char rest[112]; } attr = {0};
		int n = 0;
		while (n < 1000 && syscall(SYS_bpf, 11, &attr, sizeof attr) == 0) {
			n++;
			attr.start = attr.next;
		}
		n;
	}));
}

int main(void)
{
	clocks();
	randomness();
	identity();
	processes();
	network();
	hardware();
	files();
	return 0;
}
