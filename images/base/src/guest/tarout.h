/*
 * A writer of tar streams to stdout: ustar's header with GNU's long names and large numbers, as GNU
 * tar and busybox write and read them. Exits with EXIT_SHORT when nobody reads.
 */
#ifndef VMRUN_TAROUT_H
#define VMRUN_TAROUT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/* An entry of this type ('0' file, '2' symbolic link, '5' directory); exactly size bytes of
 * tarout_data() must follow. link is "" for any but links. */
void tarout_entry(char type, const char *name, const char *link, const struct stat *status,
		  uint64_t size);

void tarout_data(const void *data, size_t size);

/* size bytes of zeros. */
void tarout_zeros(uint64_t size);

/* Fills the last block of an entry of that size. */
void tarout_pad(uint64_t size);

/* What ends an archive. */
void tarout_end(void);

#endif
