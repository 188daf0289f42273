/*
 * A reader of tar streams: ustar, pax (path, linkpath, size, uid, gid, mtime) and GNU long names.
 * What it does not know it refuses; every length is bounded before memory is used for it.
 */
#ifndef VMRUN_TAR_H
#define VMRUN_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define TAR_PATH_MAX 4096 /* with NUL */

enum tar_kind { TAR_FILE, TAR_DIRECTORY, TAR_SYMLINK, TAR_HARDLINK };

struct tar_entry {
	enum tar_kind kind;
	char path[TAR_PATH_MAX];
	char link[TAR_PATH_MAX];
	mode_t mode; /* the permission bits, set-ID and sticky bits included */
	uid_t uid;
	gid_t gid;
	struct timespec mtime;
	uint64_t size; /* of the data that follows; 0 unless a file */
};

/* Reads the next entry's header from stdin, skipping what is left of the last one's data. False at
 * the end of the archive. Exits with EXIT_REFUSED or EXIT_SHORT for anything malformed. */
bool tar_next(struct tar_entry *entry);

/* At most size bytes of the entry's data; 0 when there are no more. */
size_t tar_data(void *buffer, size_t size);

/* Reads stdin to its end, so that whoever feeds it is not cut off. */
void tar_drain(void);

#endif
