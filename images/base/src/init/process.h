/* Starting children of PID 1. */
#ifndef VMRUN_PROCESS_H
#define VMRUN_PROCESS_H

#include <sys/types.h>

/* Runs arguments[0] in a session of its own with no signal blocked. input is its standard input
 * and output (-1: /dev/null); log, a path, gets standard error, and standard output when input is
 * -1. Returns the pid, or -1. */
pid_t process_start(char *const arguments[], int input, const char *log);

#endif
