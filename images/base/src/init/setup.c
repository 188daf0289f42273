#include "init/setup.h"

#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"

#define SYSCTLS "/usr/lib/vmrun/sysctl.conf"

static const struct {
	const char *type, *target;
	unsigned long flags;
	const char *options;
} mounts[] = {
	{ "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5" },
	{ "tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777" },
	{ "mqueue", "/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
	{ "tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755,size=64m" },
	{ "tmpfs", "/tmp", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777" },
	/* The containers' roots live here: executable, set-user-ID allowed, never devices. */
	{ "tmpfs", "/var", MS_NODEV, "mode=0755,size=90%,nr_inodes=0" },
	{ "cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC,
	  "nsdelegate,memory_recursiveprot" },
};

static const struct {
	const char *path;
	mode_t mode;
} directories[] = {
	{ "/run/vmrun", 0755 },	    { "/run/vmrun/ssh", 0700 }, { "/run/vmrun/log", 0700 },
	{ "/run/sshd", 0755 },	    { "/run/lock", 0755 },	{ "/var/lib", 0755 },
	{ "/var/lib/vmrun", 0700 }, { "/var/log", 0755 },	{ "/var/tmp", 01777 },
	{ "/var/cache", 0755 },
};

static void make_directory(const char *path, mode_t mode)
{
	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		fatal("mkdir %s: %s", path, strerror(errno));
	if (chmod(path, mode) != 0)
		fatal("chmod %s: %s", path, strerror(errno));
}

void setup_filesystems(void)
{
	for (size_t i = 0; i < sizeof mounts / sizeof mounts[0]; i++) {
		if (strncmp(mounts[i].target, "/dev/", 5) == 0)
			make_directory(mounts[i].target, 0755);
		if (mount(mounts[i].type, mounts[i].target, mounts[i].type, mounts[i].flags,
			  mounts[i].options) != 0)
			fatal("mount %s: %s", mounts[i].target, strerror(errno));
	}
	for (size_t i = 0; i < sizeof directories / sizeof directories[0]; i++)
		make_directory(directories[i].path, directories[i].mode);

	/* devtmpfs makes none of these. */
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
	symlink("/run", "/var/run");
}

void setup_cgroups(void)
{
	static const char *const controllers[] = { "+cpu", "+memory", "+pids", "+io", "+cpuset" };
	const char *system = CGROUP_ROOT "/system";

	if (mkdir(system, 0755) != 0)
		fatal("mkdir %s: %s", system, strerror(errno));
	if (text_write(CGROUP_ROOT "/system/cgroup.procs", "0") != 0)
		fatal("enter %s: %s", system, strerror(errno));
	for (size_t i = 0; i < sizeof controllers / sizeof controllers[0]; i++)
		if (text_write(CGROUP_ROOT "/cgroup.subtree_control", controllers[i]) != 0)
			console_say("cgroup controller %s: %s", controllers[i] + 1,
				    strerror(errno));
	/* Management must go on when containers use all the CPU time they may. */
	text_write(CGROUP_ROOT "/system/cpu.weight", "1000");
}

void setup_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0)
		console_say("loopback: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void apply_sysctl(const char *key, const char *value)
{
	char path[256];
	int prefix = snprintf(path, sizeof path, "/proc/sys/");
	snprintf(path + prefix, sizeof path - (size_t)prefix, "%s", key);
	for (char *dot = path + prefix; (dot = strchr(dot, '.')) != NULL;)
		*dot = '/';
	if (text_write(path, value) != 0)
		console_say("sysctl %s=%s: %s", key, value, strerror(errno));
}

void setup_sysctls(void)
{
	char text[16384];
	if (text_read(SYSCTLS, text, sizeof text) < 0)
		fatal("%s: %s", SYSCTLS, strerror(errno));
	char *rest = text;
	for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
		char *value = strchr(line, '=');
		if (*line == '#' || value == NULL)
			continue;
		*value++ = '\0';
		apply_sysctl(line, value);
	}
}
