/*
 * The root of a container that runs, and may be hostile: whatever is at work in it may rename and
 * replace what it likes between any two system calls of ours.
 *
 * For a process, everything after inside_open() happens with that root as our own (chroot) and with
 * no privilege but those named, so that even a link that is followed by mistake ends inside.
 */
#ifndef VMRUN_INSIDE_H
#define VMRUN_INSIDE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#define INSIDE_NAME_MAX 255

struct inside {
	int root;     /* O_PATH */
	int self;     /* our own /proc/self/fd, with which what was looked at is opened */
	bool process; /* the root is a process's */
};

/* An absolute path of a directory, or PID:CGROUP: the root of a process that must be in that cgroup
 * or below it, and in a mount namespace of its own. Exits with EXIT_GONE if it is another one, and
 * when it ends. With join we enter its cgroup: the memory and time that we use are the container's,
 * and whatever kills all of that kills us. */
struct inside inside_open(const char *argument, bool join);

/* Makes the root ours and gives up all capabilities but these (a mask). Nothing of it is done for a
 * directory. */
void inside_enter(const struct inside *in, uint64_t capabilities);

/* Becomes that user and group, without any capability. */
void inside_become(uint32_t uid, uint32_t gid);

/* Resolves path with directory as the root, whatever links it has. A descriptor or -1 with errno. */
int inside_resolve(int directory, const char *path, uint64_t flags);

/* Resolves path below directory without following any link. A descriptor or -1 with errno. */
int inside_below(int directory, const char *path, uint64_t flags);

/* Opens for reading what fd, an O_PATH descriptor, means, whatever has become of its name. */
int inside_reopen(const struct inside *in, int fd, int flags);

/* Whether fd is in a file system for data: not in the kernel's own, such as proc and sysfs. */
bool inside_holds_data(int fd);

/* Exits with what the host tells apart: a read-only file system, a lack of rights, all else. */
_Noreturn void inside_fail(const char *path);

#endif
