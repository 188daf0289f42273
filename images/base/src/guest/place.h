/*
 * Changing a tree without ever leaving it. Every path is resolved by the kernel with the tree as
 * its root, so neither `..` nor any symbolic link in the tree leads outside.
 */
#ifndef VMRUN_PLACE_H
#define VMRUN_PLACE_H

#include <stdbool.h>

#include "guest/tar.h"

/* Where an entry goes: a directory, open with O_PATH, and the last component of the path. name is
 * "." for the tree's root itself. */
struct place {
	int directory;
	char name[256];
};

void place_root(const char *path);

/* Splits path into its components, none of which may be `..`; refuses what cannot be a path. */
void place_normalise(const char *path, char clean[TAR_PATH_MAX]);

/* The place of a clean path. Missing parents are made, as directories of root, mode 0755. */
struct place place_make(const char *clean);

/* The same, but false when a parent is missing or not a directory. Symbolic links among the
 * parents are followed only if follow is set. */
bool place_find(const char *clean, bool follow, struct place *place);

void place_leave(struct place *place);

/* Removes whatever is there, a directory with all it holds. */
void place_remove(const struct place *place);

/* Removes all that the directory at place holds. */
void place_empty(const struct place *place);

#endif
