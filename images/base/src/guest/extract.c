/*
 * extract [--as UID:GID] [--directory] ROOT PATH
 *
 * Unpacks the tar on stdin at PATH, resolved inside ROOT (see inside.h): below it if it is a
 * directory, which it must be with --directory; else the archive's first entry becomes PATH.
 *
 * Whatever is below that is found without following a link. Files and links appear whole or not at
 * all, directories that are there stay as they are, and nothing but a file or link that another
 * replaces is removed. With --as everything is done by that user, to whom all of it belongs;
 * otherwise owners and modes are the archive's.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"
#include "guest/inside.h"
#include "guest/place.h"
#include "guest/tar.h"

#define MOST_LINKS 40
#define DEEPEST 128

#define CAPABILITY(name) (UINT64_C(1) << (name))
#define CAPABILITIES                                                                           \
	(CAPABILITY(CAP_CHOWN) | CAPABILITY(CAP_DAC_OVERRIDE) | CAPABILITY(CAP_FOWNER) |        \
	 CAPABILITY(CAP_FSETID))

/* Directories that we made; their modes and times are set when nothing more goes into them. */
struct made {
	struct made *next;
	mode_t mode;
	struct timespec mtime;
	char path[];
};

static struct inside in;
static struct made *made;
static bool keep;  /* owners and modes are the archive's */
static int base;   /* where the archive is unpacked */
static char top[INSIDE_NAME_MAX + 1];	  /* the first entry's name */
static char top_here[INSIDE_NAME_MAX + 1]; /* what it is called here; empty: as it is */

/* What is being written, under a name that is nobody's. */
static struct {
	int directory;
	char name[48];
} partial = { .directory = -1 };

static void remove_partial(void)
{
	if (partial.directory >= 0)
		unlinkat(partial.directory, partial.name, 0);
}

static void begin_partial(int directory)
{
	uint64_t number[2];
	if (getrandom(number, sizeof number, 0) != sizeof number)
		fail(EXIT_DISK, "no random numbers: %s", strerror(errno));
	snprintf(partial.name, sizeof partial.name, ".vmrun-%016" PRIx64 "%08" PRIx32, number[0],
		 (uint32_t)number[1]);
	partial.directory = directory;
}

static void finish_partial(const char *name, const char *path)
{
	if (renameat(partial.directory, partial.name, partial.directory, name) != 0) {
		if (errno == EISDIR || errno == ENOTEMPTY || errno == EEXIST)
			fail(EXIT_REFUSED, "%.400s: a directory is there", path);
		inside_fail(path);
	}
	/* Renaming to another link of the same file does nothing. */
	remove_partial();
	partial.directory = -1;
}

/* --- where it goes --------------------------------------------------------------------------- */

static void must_hold_data(int fd, const char *path)
{
	if (!inside_holds_data(fd))
		fail(EXIT_REFUSED, "%.400s: in a file system of the kernel's own", path);
}

/* Splits path before its last component; true unless there is none that could be made. */
static bool split(const char *path, char parent[TAR_PATH_MAX], char name[INSIDE_NAME_MAX + 1])
{
	const char *slash = strrchr(path, '/');
	const char *last = slash == NULL ? path : slash + 1;
	size_t length = (size_t)(last - path);
	if (*last == '\0' || strcmp(last, ".") == 0 || strcmp(last, "..") == 0 ||
	    strlen(last) > INSIDE_NAME_MAX)
		return false;
	memcpy(parent, path, length);
	parent[length] = '\0';
	strcpy(name, last);
	return true;
}

/* Puts what a link says in the place of its name. */
static void follow(char path[TAR_PATH_MAX], char parent[TAR_PATH_MAX], const char *target)
{
	int length = snprintf(path, TAR_PATH_MAX, "%s%s", target[0] == '/' ? "" : parent, target);
	if (length >= TAR_PATH_MAX)
		fail(EXIT_REFUSED, "a link leads to a path longer than %d bytes", TAR_PATH_MAX - 1);
}

/* PATH is no directory, or not there: the directory it is in, and the name that it gets. */
static void find_parent(const char *wanted)
{
	char path[TAR_PATH_MAX], parent[TAR_PATH_MAX], target[TAR_PATH_MAX];
	strcpy(path, wanted);
	for (int links = 0; links <= MOST_LINKS; links++) {
		if (!split(path, parent, top_here))
			fail(EXIT_REFUSED, "%.400s: no such directory", wanted);
		base = inside_resolve(in.root, parent, O_PATH | O_DIRECTORY);
		if (base < 0)
			inside_fail(parent);
		ssize_t length = readlinkat(base, top_here, target, sizeof target - 1);
		if (length < 0)
			return;
		target[length] = '\0';
		follow(path, parent, target);
		close(base);
	}
	errno = ELOOP;
	inside_fail(wanted);
}

static void find_base(const char *path, const struct tar_entry *first, const char *clean)
{
	base = inside_resolve(in.root, path, O_PATH | O_DIRECTORY);
	if (base < 0) {
		struct stat status;
		if (first == NULL || path[strlen(path) - 1] == '/' ||
		    (errno != ENOENT && errno != ENOTDIR))
			inside_fail(path);
		find_parent(path);
		if (strchr(clean, '/') != NULL)
			fail(EXIT_REFUSED, "the archive does not begin with what becomes %.400s",
			     path);
		strcpy(top, clean);
		if (first->kind == TAR_DIRECTORY &&
		    fstatat(base, top_here, &status, AT_SYMLINK_NOFOLLOW) == 0)
			fail(EXIT_REFUSED, "%.400s: no directory, and one is to be copied there",
			     path);
	}
	must_hold_data(base, path);
}

/* An entry's path below base. */
static void locate(const char *clean, char here[TAR_PATH_MAX])
{
	size_t length = strlen(top);
	if (top_here[0] == '\0') {
		strcpy(here, clean);
		return;
	}
	if (strncmp(clean, top, length) != 0 ||
	    (length > 0 && clean[length] != '\0' && clean[length] != '/'))
		fail(EXIT_REFUSED, "not below the archive's first entry: %.400s", clean);
	const char *rest = clean + length + (clean[length] == '/');
	if (snprintf(here, TAR_PATH_MAX, "%s%s%s", top_here, *rest == '\0' ? "" : "/", rest) >=
	    TAR_PATH_MAX)
		fail(EXIT_REFUSED, "path longer than %d bytes: %.400s", TAR_PATH_MAX - 1, clean);
}

static int open_parent(const char *here, char name[INSIDE_NAME_MAX + 1]);

/* Makes a directory that the archive does not tell of, and what is missing above it. */
static int make_parent(const char *path)
{
	char name[INSIDE_NAME_MAX + 1];
	int above = open_parent(path, name);
	if (mkdirat(above, name, 0755) != 0 && errno != EEXIST)
		inside_fail(path);
	close(above);
	return inside_below(base, path, O_PATH | O_DIRECTORY);
}

/* Opens the directory that an entry is in. */
static int open_parent(const char *here, char name[INSIDE_NAME_MAX + 1])
{
	char parent[TAR_PATH_MAX];
	if (!split(here, parent, name))
		fail(EXIT_REFUSED, "not a path: %.400s", here);
	size_t length = strlen(parent);
	if (length > 0)
		parent[length - 1] = '\0';
	int fd = inside_below(base, parent, O_PATH | O_DIRECTORY);
	if (fd < 0 && errno == ENOENT && length > 0)
		fd = make_parent(parent);
	if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
		fail(EXIT_REFUSED, "%.400s: a link or file is there, and no directory", parent);
	if (fd < 0)
		inside_fail(parent);
	must_hold_data(fd, here);
	return fd;
}

/* --- what goes there ------------------------------------------------------------------------- */

static mode_t mode_of(const struct tar_entry *entry)
{
	return entry->mode & (keep ? 07777 : 0777);
}

static void note_made(const char *here, const struct tar_entry *entry)
{
	size_t length = strlen(here) + 1;
	struct made *directory = malloc(sizeof *directory + length);
	if (directory == NULL)
		fail(EXIT_DISK, "out of memory");
	directory->next = made;
	directory->mode = mode_of(entry);
	directory->mtime = entry->mtime;
	memcpy(directory->path, here, length);
	made = directory;
}

/* Whether fd is a directory as mkdir has just made it. Should the container have put another one of
 * root's in its place, that is as empty and as private. */
static bool is_fresh(int fd)
{
	struct stat status;
	bool empty = true;
	DIR *stream = fdopendir(dup(fd));
	if (stream == NULL || fstat(fd, &status) != 0)
		return false;
	for (struct dirent *entry; empty && (entry = readdir(stream)) != NULL;)
		empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
	closedir(stream);
	return empty && status.st_uid == geteuid() && (status.st_mode & 0777) == 0700;
}

static void give_directory(int parent, const char *name, const struct tar_entry *entry,
			   const char *here)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || !is_fresh(fd))
		fail(EXIT_REFUSED, "%.400s: something else was put there", here);
	if (fchown(fd, entry->uid, entry->gid) != 0 || fchmod(fd, mode_of(entry)) != 0)
		inside_fail(here);
	close(fd);
}

static void add_directory(int parent, const char *name, const struct tar_entry *entry,
			  const char *here)
{
	struct stat status;
	if (mkdirat(parent, name, 0700) == 0) {
		if (keep)
			give_directory(parent, name, entry, here);
		note_made(here, entry);
	} else if (errno != EEXIST) {
		inside_fail(here);
	} else if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
		inside_fail(here);
	} else if (!S_ISDIR(status.st_mode)) {
		fail(EXIT_REFUSED, "%.400s: no directory, and one is to be copied there", here);
	}
}

/* A file without a name, where there can be one: should we be killed, its memory is free again. */
static int open_new(bool *nameless)
{
	int fd = openat(partial.directory, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
	*nameless = fd >= 0;
	if (fd >= 0 || errno != EOPNOTSUPP)
		return fd;
	return openat(partial.directory, partial.name,
		      O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
}

static int give_name(int fd)
{
	char number[16];
	snprintf(number, sizeof number, "%d", fd);
	return linkat(in.self, number, partial.directory, partial.name, AT_SYMLINK_FOLLOW);
}

static void add_file(const struct tar_entry *entry, const char *here)
{
	static char buffer[131072];
	bool nameless;
	int fd = open_new(&nameless);
	if (fd < 0)
		inside_fail(here);
	for (size_t got; (got = tar_data(buffer, sizeof buffer)) > 0;)
		if (write_all(fd, buffer, got) != 0)
			inside_fail(here);
	const struct timespec times[2] = { entry->mtime, entry->mtime };
	if ((keep && fchown(fd, entry->uid, entry->gid) != 0) ||
	    fchmod(fd, mode_of(entry)) != 0 || futimens(fd, times) != 0 ||
	    (nameless && give_name(fd) != 0) || close(fd) != 0)
		inside_fail(here);
}

static void add_symlink(const struct tar_entry *entry, const char *here)
{
	struct stat status;
	if (entry->link[0] == '\0')
		fail(EXIT_REFUSED, "symbolic link without a target: %.400s", here);
	if (symlinkat(entry->link, partial.directory, partial.name) != 0)
		inside_fail(here);
	if (!keep)
		return;
	int fd = openat(partial.directory, partial.name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) != 0 || !S_ISLNK(status.st_mode))
		fail(EXIT_REFUSED, "%.400s: something else was put there", here);
	if (fchownat(fd, "", entry->uid, entry->gid, AT_EMPTY_PATH) != 0)
		inside_fail(here);
	close(fd);
}

static void add_hardlink(const struct tar_entry *entry, const char *here)
{
	char clean[TAR_PATH_MAX], target[TAR_PATH_MAX], name[INSIDE_NAME_MAX + 1];
	struct stat status;
	place_normalise(entry->link, clean);
	locate(clean, target);
	if (*target == '\0')
		fail(EXIT_REFUSED, "hard link to what is no file: %.400s", here);
	int parent = open_parent(target, name);
	if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode))
		fail(EXIT_REFUSED, "hard link to what is no file: %.400s", here);
	if (linkat(parent, name, partial.directory, partial.name, 0) != 0)
		inside_fail(here);
	close(parent);
}

static void add(const struct tar_entry *entry, const char *here)
{
	char name[INSIDE_NAME_MAX + 1];
	unsigned depth = 0;
	if (*here == '\0') {
		if (entry->kind != TAR_DIRECTORY)
			fail(EXIT_REFUSED, "a file without a name");
		return;
	}
	for (const char *slash = here; (slash = strchr(slash, '/')) != NULL; slash++)
		if (++depth > DEEPEST)
			fail(EXIT_REFUSED, "%.400s: more than %d directories deep", here, DEEPEST);
	int parent = open_parent(here, name);
	if (entry->kind == TAR_DIRECTORY) {
		add_directory(parent, name, entry, here);
	} else {
		begin_partial(parent);
		if (entry->kind == TAR_FILE)
			add_file(entry, here);
		else if (entry->kind == TAR_SYMLINK)
			add_symlink(entry, here);
		else
			add_hardlink(entry, here);
		finish_partial(name, here);
	}
	close(parent);
}

/* The last made comes first, so that no directory is closed to us before those in it are done. What
 * has been replaced meanwhile is the container's affair: without privileges we change only what it
 * could, and with them no more than a time. */
static void finish_directories(void)
{
	for (struct made *directory = made; directory != NULL; directory = directory->next) {
		const struct timespec times[2] = { directory->mtime, directory->mtime };
		int fd = inside_below(base, directory->path, O_RDONLY | O_DIRECTORY);
		if (fd < 0)
			continue;
		if (!keep && fchmod(fd, directory->mode) != 0)
			inside_fail(directory->path);
		(void)!futimens(fd, times);
		close(fd);
	}
}

/* --- the verb -------------------------------------------------------------------------------- */

static void parse_user(char *text, uint32_t *uid, uint32_t *gid)
{
	uint64_t first = 0, second = 0;
	char *colon = strchr(text, ':');
	if (colon != NULL)
		*colon = '\0';
	if (colon == NULL || !text_number(text, UINT32_MAX - 1, &first) ||
	    !text_number(colon + 1, UINT32_MAX - 1, &second))
		fail(EXIT_USAGE, "not UID:GID");
	*uid = (uint32_t)first;
	*gid = (uint32_t)second;
}

int extract(int count, char **arguments)
{
	static struct tar_entry entry;
	char clean[TAR_PATH_MAX], here[TAR_PATH_MAX];
	bool directory = false;
	uint32_t uid = 0, gid = 0;
	keep = true;
	for (; count > 2 && strncmp(arguments[0], "--", 2) == 0; count--, arguments++) {
		if (strcmp(arguments[0], "--directory") == 0) {
			directory = true;
		} else if (strcmp(arguments[0], "--as") == 0) {
			keep = false;
			parse_user(arguments[1], &uid, &gid);
			count--;
			arguments++;
		} else {
			break;
		}
	}
	if (count != 2 || strlen(arguments[1]) >= TAR_PATH_MAX || arguments[1][0] != '/')
		fail(EXIT_USAGE, "usage: extract [--as UID:GID] [--directory] ROOT PATH");
	/* Hanging up shows as the end of stdin, and then what is half written is removed. */
	signal(SIGHUP, SIG_IGN);
	atexit(remove_partial);
	in = inside_open(arguments[0], true);
	inside_enter(&in, CAPABILITIES | (keep ? 0 : CAPABILITY(CAP_SETUID) | CAPABILITY(CAP_SETGID)));
	if (!keep)
		inside_become(uid, gid);
	umask(022);
	bool any = tar_next(&entry);
	if (any)
		place_normalise(entry.path, clean);
	find_base(arguments[1], any && !directory ? &entry : NULL, clean);
	for (; any; any = tar_next(&entry)) {
		place_normalise(entry.path, clean);
		locate(clean, here);
		add(&entry, here);
	}
	tar_drain();
	finish_directories();
	return EXIT_DONE;
}
