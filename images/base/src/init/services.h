/* The flavour's daemons, listed in /usr/lib/vmrun/services. */
#ifndef VMRUN_SERVICES_H
#define VMRUN_SERVICES_H

#include <stdbool.h>
#include <sys/types.h>

/* Starts every service: a line each, the path of the program and its arguments. A missing file is
 * an empty one. */
void services_start(void);

/* Starts again what has ended, a second after its last start at the earliest. */
void services_retry(void);

/* True if pid was a service. */
bool services_child_ended(pid_t pid);

#endif
