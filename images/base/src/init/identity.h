/* Who this guest is: taken from the host once, after boot, and never part of an image. */
#ifndef VMRUN_IDENTITY_H
#define VMRUN_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Starts to collect an identify block. NULL, or why it is refused. */
const char *identity_begin(void);

/* True between `identify` and `end`. */
bool identity_collecting(void);

/* Drops a block that was not finished: the host went away. */
void identity_abandon(void);

/* One line of the block. A malformed one makes the block fail at its end. */
void identity_line(char *line);

/* The block's end: takes the identity on and starts to make the host key. NULL, or why the block
 * is refused. */
const char *identity_end(void);

/* True if pid was making the host key. answer is then the line for the host. */
bool identity_child_ended(pid_t pid, int status, char *answer, size_t size);

/* True once the guest has its host key. */
bool identity_done(void);

#endif
