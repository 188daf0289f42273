/*
 * apply [--whiteouts] ROOT
 *
 * Applies a layer (OCI image specification, layer.md) to a tree, in two passes over the same tar.
 * The first, --whiteouts, carries out its deletions, which concern the layers below alone; the
 * second adds its entries, each of which replaces what was there, except that a directory over a
 * directory keeps the children.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"
#include "guest/place.h"
#include "guest/tar.h"

#define WHITEOUT ".wh."
#define META ".wh..wh."
#define OPAQUE ".wh..wh..opq"

/* Directories whose times are set at the end: adding entries changes them. */
struct stamp {
	struct stamp *next;
	struct timespec mtime;
	char path[];
};

static struct stamp *stamps;

static const char *last_name(const char *clean)
{
	const char *slash = strrchr(clean, '/');
	return slash == NULL ? clean : slash + 1;
}

static bool is_whiteout(const char *clean)
{
	return strncmp(last_name(clean), WHITEOUT, strlen(WHITEOUT)) == 0;
}

static void carry_out_whiteout(const char *clean)
{
	char target[TAR_PATH_MAX];
	struct place place;
	const char *name = last_name(clean);
	size_t parent = (size_t)(name - clean);

	memcpy(target, clean, parent);
	if (strcmp(name, OPAQUE) == 0)
		target[parent > 0 ? parent - 1 : 0] = '\0';
	else if (strncmp(name, META, strlen(META)) == 0)
		return; /* other metadata of aufs; means nothing here */
	else
		strcpy(target + parent, name + strlen(WHITEOUT));
	const char *victim = last_name(target);
	if (strcmp(name, OPAQUE) != 0 &&
	    (*victim == '\0' || strcmp(victim, ".") == 0 || strcmp(victim, "..") == 0))
		fail(EXIT_REFUSED, "whiteout of nothing: %.200s", clean);

	/* Through a symbolic link it would delete what another path names. */
	if (!place_find(target, false, &place))
		return;
	if (strcmp(name, OPAQUE) == 0)
		place_empty(&place);
	else
		place_remove(&place);
	place_leave(&place);
}

static void set_times(const struct place *place, struct timespec mtime)
{
	const struct timespec times[2] = { mtime, mtime };
	if (utimensat(place->directory, place->name, times, AT_SYMLINK_NOFOLLOW) != 0)
		fail(EXIT_DISK, "%s: set times: %s", place->name, strerror(errno));
}

static void set_owner(const struct place *place, const struct tar_entry *entry)
{
	if (fchownat(place->directory, place->name, entry->uid, entry->gid,
		     AT_SYMLINK_NOFOLLOW) != 0)
		fail(EXIT_DISK, "%.200s: set owner: %s", entry->path, strerror(errno));
}

static void add_directory(const struct place *place, const struct tar_entry *entry,
			  const char *clean)
{
	struct stat status;
	bool there = fstatat(place->directory, place->name, &status, AT_SYMLINK_NOFOLLOW) == 0;
	if (there && !S_ISDIR(status.st_mode)) {
		place_remove(place);
		there = false;
	}
	if (!there && mkdirat(place->directory, place->name, 0700) != 0)
		fail(EXIT_DISK, "%.200s: %s", entry->path, strerror(errno));
	set_owner(place, entry);
	/* It is a directory, so following links is no concern; the mode comes after the owner,
	 * which clears set-ID bits. */
	if (fchmodat(place->directory, place->name, entry->mode, 0) != 0)
		fail(EXIT_DISK, "%.200s: set mode: %s", entry->path, strerror(errno));

	size_t length = strlen(clean) + 1;
	struct stamp *stamp = malloc(sizeof *stamp + length);
	if (stamp == NULL)
		fail(EXIT_DISK, "out of memory");
	stamp->next = stamps;
	stamp->mtime = entry->mtime;
	memcpy(stamp->path, clean, length);
	stamps = stamp;
}

static void add_file(const struct place *place, const struct tar_entry *entry)
{
	static char buffer[131072];
	int fd = openat(place->directory, place->name,
			O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		fail(EXIT_DISK, "%.200s: %s", entry->path, strerror(errno));
	for (size_t got; (got = tar_data(buffer, sizeof buffer)) > 0;)
		if (write_all(fd, buffer, got) != 0)
			fail(EXIT_DISK, "%.200s: %s", entry->path, strerror(errno));
	const struct timespec times[2] = { entry->mtime, entry->mtime };
	if (fchown(fd, entry->uid, entry->gid) != 0 || fchmod(fd, entry->mode) != 0 ||
	    futimens(fd, times) != 0 || close(fd) != 0)
		fail(EXIT_DISK, "%.200s: %s", entry->path, strerror(errno));
}

static void add_symlink(const struct place *place, const struct tar_entry *entry)
{
	if (entry->link[0] == '\0')
		fail(EXIT_REFUSED, "symbolic link without a target: %.200s", entry->path);
	if (symlinkat(entry->link, place->directory, place->name) != 0)
		fail(EXIT_DISK, "%.200s: %s", entry->path, strerror(errno));
	set_owner(place, entry);
	set_times(place, entry->mtime);
}

static bool same_file(const struct place *a, const struct place *b)
{
	struct stat first, second;
	return fstatat(a->directory, a->name, &first, AT_SYMLINK_NOFOLLOW) == 0 &&
	       fstatat(b->directory, b->name, &second, AT_SYMLINK_NOFOLLOW) == 0 &&
	       first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

static void add_hardlink(const struct place *place, const struct tar_entry *entry)
{
	char target[TAR_PATH_MAX];
	struct place existing;
	struct stat status;

	place_normalise(entry->link, target);
	if (*target == '\0' || !place_find(target, true, &existing) ||
	    fstatat(existing.directory, existing.name, &status, AT_SYMLINK_NOFOLLOW) != 0)
		fail(EXIT_REFUSED, "hard link to what is not there: %.200s", entry->path);
	if (!S_ISREG(status.st_mode) && !S_ISLNK(status.st_mode))
		fail(EXIT_REFUSED, "hard link to what is no file: %.200s", entry->path);
	if (!same_file(place, &existing)) {
		place_remove(place);
		if (linkat(existing.directory, existing.name, place->directory, place->name, 0))
			fail(errno == ENOENT ? EXIT_REFUSED : EXIT_DISK, "%.200s: %s", entry->path,
			     strerror(errno));
	}
	place_leave(&existing);
}

static void add(const struct tar_entry *entry, const char *clean)
{
	struct place place = place_make(clean);
	if (*clean == '\0' && entry->kind != TAR_DIRECTORY)
		fail(EXIT_REFUSED, "the root must be a directory");
	if (entry->kind == TAR_DIRECTORY) {
		add_directory(&place, entry, clean);
	} else if (entry->kind == TAR_HARDLINK) {
		add_hardlink(&place, entry);
	} else {
		place_remove(&place);
		if (entry->kind == TAR_FILE)
			add_file(&place, entry);
		else
			add_symlink(&place, entry);
	}
	place_leave(&place);
}

static void stamp_directories(void)
{
	for (struct stamp *stamp = stamps; stamp != NULL; stamp = stamp->next) {
		struct place place;
		struct stat status;
		if (!place_find(stamp->path, true, &place))
			continue;
		/* A later entry of the same archive may have replaced it. */
		if (fstatat(place.directory, place.name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISDIR(status.st_mode))
			set_times(&place, stamp->mtime);
		place_leave(&place);
	}
}

int apply(int count, char **arguments)
{
	static struct tar_entry entry;
	char clean[TAR_PATH_MAX];
	bool whiteouts = count == 2 && strcmp(arguments[0], "--whiteouts") == 0;
	if (count != (whiteouts ? 2 : 1))
		fail(EXIT_USAGE, "usage: apply [--whiteouts] ROOT");
	place_root(arguments[count - 1]);
	umask(022);
	while (tar_next(&entry)) {
		place_normalise(entry.path, clean);
		if (!is_whiteout(clean)) {
			if (!whiteouts)
				add(&entry, clean);
		} else if (whiteouts) {
			carry_out_whiteout(clean);
		}
	}
	tar_drain();
	stamp_directories();
	return EXIT_DONE;
}
