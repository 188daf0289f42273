/* Reading and writing small files, and numbers in text. */
#ifndef VMRUN_TEXT_H
#define VMRUN_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Reads at most size-1 bytes of path into text, ends them with NUL and strips one trailing
 * newline. Returns the length, or -1 with errno set. */
ssize_t text_read(const char *path, char *text, size_t size);

/* Writes text to an existing file (procfs, sysfs, cgroupfs) in one write. 0 or -1 with errno. */
int text_write(const char *path, const char *text);

/* Creates path, which must not exist, with this mode and content. 0 or -1 with errno. */
int text_create(const char *path, const char *text, mode_t mode);

/* A decimal number of 1 to 19 digits and nothing else, at most max. */
bool text_number(const char *text, uint64_t max, uint64_t *value);

/* Writes all of data, resuming after interruptions. 0 or -1 with errno. */
int write_all(int fd, const void *data, size_t size);

#endif
