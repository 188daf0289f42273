#include "guest/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"

#define XFS_MAGIC 0x58465342
#define ATTEMPTS 64

_Noreturn void inside_fail(const char *path)
{
	int status = EXIT_REFUSED;
	if (errno == EROFS)
		status = EXIT_READ_ONLY;
	else if (errno == EACCES || errno == EPERM)
		status = EXIT_DENIED;
	else if (errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == ENOMEM)
		status = EXIT_DISK;
	fail(status, "%.400s: %s", *path == '\0' ? "/" : path, strerror(errno));
}

static _Noreturn void gone(const char *argument, const char *why)
{
	fail(EXIT_GONE, "%.100s: %s", argument, why);
}

/* A small file of the process whose directory in procfs is open. */
static void read_at(int directory, const char *argument, const char *file, char *text, size_t size)
{
	int fd = openat(directory, file, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);
	if (got <= 0)
		gone(argument, "no such process");
	text[got] = '\0';
	close(fd);
}

/* The process's cgroup, from the line "0::/path"; it must be the one named, or below that. */
static void check_cgroup(int directory, const char *argument, const char *cgroup, char path[1024])
{
	char text[1024];
	size_t length = strlen(cgroup);
	read_at(directory, argument, "cgroup", text, sizeof text);
	const char *line = strstr(text, "0::");
	if (line == NULL || strchr(line, '\n') == NULL)
		gone(argument, "its cgroup cannot be read");
	snprintf(path, 1024, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
	if (strncmp(path, cgroup, length) != 0 || (path[length] != '\0' && path[length] != '/'))
		gone(argument, "the process is not of this container");
}

static void check_namespace(int directory, const char *argument)
{
	struct stat its, ours;
	if (fstatat(directory, "ns/mnt", &its, 0) != 0 || stat("/proc/self/ns/mnt", &ours) != 0)
		gone(argument, "its namespaces cannot be read");
	if (its.st_dev == ours.st_dev && its.st_ino == ours.st_ino)
		gone(argument, "the process has no mount namespace of its own");
}

/* Memory that we use and pages that we fill are the container's, and should it have no more, we
 * are the first to go. */
static void join_cgroup(const char *argument, const char *cgroup)
{
	char path[1280];
	snprintf(path, sizeof path, CGROUP_ROOT "%s/cgroup.procs", cgroup);
	if (text_write("/proc/self/oom_score_adj", "1000") != 0 || text_write(path, "0") != 0)
		gone(argument, "its cgroup cannot be entered");
}

/* Goes on in a child, and ends it when the process ends: its mounts and its cgroup can only go when
 * nobody is left who holds them. */
static void end_with(int process, const char *argument)
{
	int status = 0;
	pid_t child = fork();
	if (child == 0)
		return;
	int worker = child < 0 ? -1 : (int)syscall(SYS_pidfd_open, child, 0);
	if (worker < 0)
		fail(EXIT_DISK, "cannot fork: %s", strerror(errno));
	/* Hanging up shows as the end of the child's streams. */
	signal(SIGHUP, SIG_IGN);
	close(STDIN_FILENO);
	struct pollfd ended[] = { { .fd = process, .events = POLLIN },
				  { .fd = worker, .events = POLLIN } };
	while (poll(ended, 2, -1) < 0 && errno == EINTR)
		;
	bool over = ended[1].revents == 0;
	if (over)
		kill(child, SIGKILL);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (over)
		gone(argument, "the container has ended");
	if (WIFSIGNALED(status))
		fail(EXIT_DISK, "killed by signal %d: the container has no memory left",
		     WTERMSIG(status));
	exit(WEXITSTATUS(status));
}

/* One descriptor of the process's directory in procfs means this very process, however often its
 * number is used again; so does the other if that process still lives afterwards. */
static int root_of(const char *argument, const char *cgroup, bool join)
{
	char path[32], found[1024];
	uint64_t pid;
	snprintf(path, sizeof path, "%.*s", (int)(cgroup - 1 - argument), argument);
	if (!text_number(path, INT32_MAX, &pid) || pid < 2)
		fail(EXIT_USAGE, "not a process id: %.100s", argument);
	snprintf(path, sizeof path, "/proc/%" PRIu64, pid);
	int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int process = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
	if (directory < 0 || process < 0)
		gone(argument, "no such process");
	check_cgroup(directory, argument, cgroup, found);
	check_namespace(directory, argument);
	int root = openat(directory, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		gone(argument, "it has just ended");
	end_with(process, argument);
	close(process);
	if (join)
		join_cgroup(argument, found);
	close(directory);
	return root;
}

struct inside inside_open(const char *argument, bool join)
{
	struct inside in = { .process = argument[0] != '/' };
	if (in.process) {
		size_t digits = strspn(argument, "0123456789");
		const char *cgroup = argument + digits + 1;
		if (digits == 0 || digits > 10 || argument[digits] != ':' || cgroup[0] != '/' ||
		    cgroup[1] == '\0' || strstr(cgroup, "..") != NULL)
			fail(EXIT_USAGE, "neither a directory nor PID:CGROUP: %.100s", argument);
		in.root = root_of(argument, cgroup, join);
	} else {
		in.root = open(argument, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (in.root < 0)
			fail(EXIT_DISK, "%.100s: %s", argument, strerror(errno));
	}
	in.self = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (in.self < 0)
		fail(EXIT_DISK, "/proc/self/fd: %s", strerror(errno));
	return in;
}

static void check(long result, const char *what)
{
	if (result != 0)
		fail(EXIT_DISK, "%s: %s", what, strerror(errno));
}

static void keep_capabilities(uint64_t mask)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {
		{ .effective = (uint32_t)mask, .permitted = (uint32_t)mask },
		{ .effective = (uint32_t)(mask >> 32), .permitted = (uint32_t)(mask >> 32) },
	};
	check(syscall(SYS_capset, &header, data), "give up capabilities");
}

void inside_enter(const struct inside *in, uint64_t capabilities)
{
	if (!in->process)
		return;
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
	check(fchdir(in->root), "enter the container's root");
	check(chroot("."), "enter the container's root");
	keep_capabilities(capabilities);
}

void inside_become(uint32_t uid, uint32_t gid)
{
	if (geteuid() != 0)
		return; /* whoever is not root has nothing to give up */
	check(setgroups(0, NULL), "drop groups");
	check(setresgid(gid, gid, gid), "change the group");
	check(setresuid(uid, uid, uid), "change the user");
	/* Else our own descriptors in procfs would be root's. */
	check(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "set dumpable");
	keep_capabilities(0);
}

static int resolve(int directory, const char *path, uint64_t flags, uint64_t how_to)
{
	struct open_how how = { .flags = flags | O_CLOEXEC, .resolve = how_to };
	/* EAGAIN: something was renamed while the kernel went through `..`. */
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		int fd = (int)syscall(SYS_openat2, directory, *path == '\0' ? "." : path, &how,
				      sizeof how);
		if (fd >= 0 || errno != EAGAIN)
			return fd;
	}
	return -1;
}

int inside_resolve(int directory, const char *path, uint64_t flags)
{
	return resolve(directory, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

int inside_below(int directory, const char *path, uint64_t flags)
{
	return resolve(directory, path, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}

int inside_reopen(const struct inside *in, int fd, int flags)
{
	char name[16];
	snprintf(name, sizeof name, "%d", fd);
	return openat(in->self, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | flags);
}

bool inside_holds_data(int fd)
{
	struct statfs status;
	if (fstatfs(fd, &status) != 0)
		return false;
	/* Those that a container can have data in; of any other it is not known what reading and
	 * writing would do. */
	switch ((uint32_t)status.f_type) {
	case TMPFS_MAGIC:
	case RAMFS_MAGIC:
	case EXT4_SUPER_MAGIC:
	case OVERLAYFS_SUPER_MAGIC:
	case (uint32_t)EROFS_SUPER_MAGIC_V1:
	case SQUASHFS_MAGIC:
	case (uint32_t)BTRFS_SUPER_MAGIC:
	case XFS_MAGIC:
		return true;
	default:
		return false;
	}
}
