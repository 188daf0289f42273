/*
 * archive [--follow] ROOT PATH NAME
 *
 * Writes a tar of PATH, resolved inside ROOT (see inside.h), as NAME. What is read is what was
 * looked at: everything is opened without effect first (O_PATH), and for reading only if it is a
 * file or a directory. A file has the size that it had when it was opened, whatever happens to it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"
#include "guest/inside.h"
#include "guest/tar.h"
#include "guest/tarout.h"

#define DEEPEST 128
#define ENTRIES_MAX 500000
#define MOST_NOTES 20

static struct inside in;
static char path[TAR_PATH_MAX]; /* of the entry, as the archive has it */
static unsigned entries, left_out;

/* Tells that path is not (wholly) in the archive. */
static void note(const char *why)
{
	char line[600] = "vmrun-guest: ";
	size_t used = strlen(line);
	if (++left_out > MOST_NOTES)
		return;
	snprintf(line + used, sizeof line - used - 1, "%.400s %s", path, why);
	one_line(line);
	strcat(line, "\n");
	write_all(STDERR_FILENO, line, strlen(line));
}

static void count_notes(void)
{
	char line[64];
	if (left_out <= MOST_NOTES)
		return;
	snprintf(line, sizeof line, "vmrun-guest: and %u more\n", left_out - MOST_NOTES);
	write_all(STDERR_FILENO, line, strlen(line));
}

static void add_content(int fd, uint64_t size)
{
	static char buffer[131072];
	uint64_t left = size;
	while (left > 0) {
		ssize_t got = read(fd, buffer, left < sizeof buffer ? (size_t)left : sizeof buffer);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			note(got == 0 ? "has shrunk while it was read: zeros stand for the rest" :
					"cannot be read: zeros stand for the rest");
			tarout_zeros(left);
			break;
		}
		tarout_data(buffer, (size_t)got);
		left -= (uint64_t)got;
	}
	tarout_pad(size);
}

static void add_file(int fd, unsigned depth)
{
	struct stat status;
	int file = inside_reopen(&in, fd, 0);
	if (file < 0 || fstat(file, &status) != 0) {
		if (depth == 0)
			inside_fail(path);
		note("is left out: it cannot be read");
	} else {
		tarout_entry('0', path, "", &status, (uint64_t)status.st_size);
		add_content(file, (uint64_t)status.st_size);
	}
	if (file >= 0)
		close(file);
}

static void add_link(int fd, const struct stat *status)
{
	char target[TAR_PATH_MAX];
	ssize_t length = readlinkat(fd, "", target, sizeof target);
	if (length <= 0 || (size_t)length >= sizeof target) {
		note("is left out: the link cannot be read");
		return;
	}
	target[length] = '\0';
	tarout_entry('2', path, target, status, 0);
}

static void add(int fd, unsigned depth);

static void add_children(DIR *stream, unsigned depth)
{
	size_t length = strlen(path);
	for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
		const char *name = entry->d_name;
		size_t size = strlen(name);
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
			continue;
		if (size > INSIDE_NAME_MAX || length + 1 + size >= sizeof path)
			fail(EXIT_REFUSED, "%.400s: a path in it is longer than %d bytes", path,
			     TAR_PATH_MAX - 1);
		path[length] = '/';
		memcpy(path + length + 1, name, size + 1);
		int child = openat(dirfd(stream), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (child >= 0)
			add(child, depth + 1);
		else if (errno != ENOENT)
			note("is left out: it cannot be looked at");
		path[length] = '\0';
	}
}

static void add_directory(int fd, const struct stat *status, unsigned depth)
{
	int directory = inside_reopen(&in, fd, O_DIRECTORY);
	DIR *stream = directory < 0 ? NULL : fdopendir(directory);
	close(fd);
	if (depth >= DEEPEST)
		fail(EXIT_REFUSED, "%.400s: more than %d directories deep", path, DEEPEST);
	tarout_entry('5', path, "", status, 0);
	if (stream == NULL) {
		note("is left empty: it cannot be listed");
		if (directory >= 0)
			close(directory);
		return;
	}
	add_children(stream, depth);
	closedir(stream);
}

/* Adds what fd, an O_PATH descriptor, means, and closes it. */
static void add(int fd, unsigned depth)
{
	struct stat status;
	if (++entries > ENTRIES_MAX)
		fail(EXIT_REFUSED, "more than %d entries", ENTRIES_MAX);
	if (fstat(fd, &status) != 0) {
		note("is left out: it cannot be looked at");
	} else if (!inside_holds_data(fd)) {
		if (depth == 0)
			fail(EXIT_REFUSED, "%.400s: in a file system of the kernel's own", path);
		note("is left out: it is in a file system of the kernel's own");
	} else if (S_ISDIR(status.st_mode)) {
		add_directory(fd, &status, depth);
		return;
	} else if (S_ISREG(status.st_mode)) {
		add_file(fd, depth);
	} else if (S_ISLNK(status.st_mode)) {
		add_link(fd, &status);
	} else {
		if (depth == 0)
			fail(EXIT_REFUSED, "%.400s: no file, directory or link", path);
		note("is left out: it is no file, directory or link");
	}
	close(fd);
}

int archive(int count, char **arguments)
{
	bool follow = count == 4 && strcmp(arguments[0], "--follow") == 0;
	if (count != (follow ? 4 : 3))
		fail(EXIT_USAGE, "usage: archive [--follow] ROOT PATH NAME");
	const char *from = arguments[count - 2], *name = arguments[count - 1];
	if (strlen(name) > INSIDE_NAME_MAX || *name == '\0' || strchr(name, '/') != NULL ||
	    strcmp(name, "..") == 0)
		fail(EXIT_USAGE, "not a name: %.300s", name);
	in = inside_open(arguments[count - 3], false);
	inside_enter(&in, UINT64_C(1) << CAP_DAC_READ_SEARCH);
	int fd = inside_resolve(in.root, from, O_PATH | (follow ? 0 : O_NOFOLLOW));
	if (fd < 0)
		inside_fail(from);
	strcpy(path, name);
	add(fd, 0);
	tarout_end();
	count_notes();
	return EXIT_DONE;
}
