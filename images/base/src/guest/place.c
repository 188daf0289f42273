#include "guest/place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest/guest.h"

static int root = -1;

void place_root(const char *path)
{
	root = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (root < 0)
		fail(EXIT_DISK, "%s: %s", path, strerror(errno));
}

void place_normalise(const char *path, char clean[TAR_PATH_MAX])
{
	size_t used = 0;
	for (const char *from = path; *from != '\0';) {
		size_t length = strcspn(from, "/");
		bool skip = length == 0 || (length == 1 && from[0] == '.');
		if (length == 2 && memcmp(from, "..", 2) == 0)
			fail(EXIT_REFUSED, "path with `..`: %.200s", path);
		if (length > 255)
			fail(EXIT_REFUSED, "name longer than 255 bytes: %.200s", path);
		if (!skip) {
			if (used > 0)
				clean[used++] = '/';
			memcpy(clean + used, from, length);
			used += length;
		}
		from += length;
		from += *from == '/';
	}
	clean[used] = '\0';
}

/* Opens a directory of the tree; an empty path is the root. */
static int open_directory(const char *path, bool follow)
{
	struct open_how how = {
		.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS |
			   (follow ? 0 : RESOLVE_NO_SYMLINKS),
	};
	/* EAGAIN: something was renamed meanwhile; nobody else should be at work here. */
	return (int)syscall(SYS_openat2, root, *path == '\0' ? "." : path, &how, sizeof how);
}

static void split(const char *clean, char parent[TAR_PATH_MAX], char name[256])
{
	const char *slash = strrchr(clean, '/');
	size_t length = slash == NULL ? 0 : (size_t)(slash - clean);
	memcpy(parent, clean, length);
	parent[length] = '\0';
	const char *last = slash == NULL ? clean : slash + 1;
	snprintf(name, 256, "%s", *last == '\0' ? "." : last);
}

bool place_find(const char *clean, bool follow, struct place *place)
{
	char parent[TAR_PATH_MAX];
	split(clean, parent, place->name);
	place->directory = open_directory(parent, follow);
	if (place->directory >= 0)
		return true;
	if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
		fail(EXIT_DISK, "%.200s: %s", clean, strerror(errno));
	return false;
}

/* Makes the missing directories of path, one after the other from the top. */
static void make_directories(const char *path)
{
	char prefix[TAR_PATH_MAX];
	size_t length = 0;
	do {
		length += strcspn(path + length + (length > 0), "/") + (length > 0);
		memcpy(prefix, path, length);
		prefix[length] = '\0';
		struct place place;
		if (!place_find(prefix, true, &place))
			fail(EXIT_REFUSED, "not a directory: %.200s", prefix);
		if (mkdirat(place.directory, place.name, 0755) != 0 && errno != EEXIST)
			fail(EXIT_DISK, "%.200s: %s", prefix, strerror(errno));
		place_leave(&place);
	} while (path[length] != '\0');
}

struct place place_make(const char *clean)
{
	struct place place;
	char parent[TAR_PATH_MAX];
	if (place_find(clean, true, &place))
		return place;
	split(clean, parent, place.name);
	make_directories(parent);
	if (!place_find(clean, true, &place))
		fail(EXIT_REFUSED, "a parent is not a directory: %.200s", clean);
	return place;
}

void place_leave(struct place *place)
{
	close(place->directory);
	place->directory = -1;
}

/* Removes what can be removed at once from the directory open at fd. Returns the first
 * subdirectory that is not empty, opened, or -1 when nothing is left. */
static int remove_entries(int fd)
{
	int subdirectory = -1;
	DIR *stream = fdopendir(dup(fd));
	if (stream == NULL)
		fail(EXIT_DISK, "cannot list a directory: %s", strerror(errno));
	rewinddir(stream);
	for (struct dirent *entry; subdirectory < 0 && (entry = readdir(stream)) != NULL;) {
		const char *name = entry->d_name;
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
		    unlinkat(fd, name, 0) == 0 || unlinkat(fd, name, AT_REMOVEDIR) == 0)
			continue;
		subdirectory = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (subdirectory < 0)
			fail(EXIT_DISK, "cannot remove %s: %s", name, strerror(errno));
	}
	closedir(stream);
	return subdirectory;
}

/* Empties the directory open at fd, and closes it. Without recursion, so that the depth of a tree
 * is no matter: it goes down as long as it can and comes up through `..`, which can only be the
 * directory it came from, since nobody else is at work here. */
static void empty_directory(int fd)
{
	for (unsigned depth = 0;;) {
		int next = remove_entries(fd);
		if (next >= 0) {
			depth++;
		} else if (depth > 0) {
			depth--;
			next = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			if (next < 0)
				fail(EXIT_DISK, "cannot list a directory: %s", strerror(errno));
		}
		close(fd);
		if (next < 0)
			return;
		fd = next;
	}
}

void place_empty(const struct place *place)
{
	int fd = openat(place->directory, place->name,
			O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		empty_directory(fd);
	else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
		fail(EXIT_DISK, "%s: %s", place->name, strerror(errno));
}

void place_remove(const struct place *place)
{
	if (unlinkat(place->directory, place->name, 0) == 0 || errno == ENOENT)
		return;
	place_empty(place);
	if (unlinkat(place->directory, place->name, AT_REMOVEDIR) != 0)
		fail(EXIT_DISK, "cannot remove %s: %s", place->name, strerror(errno));
}
