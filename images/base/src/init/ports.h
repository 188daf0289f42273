/* The virtio-serial ports: finding them by name, and one sshd on each of vmrun.ssh.N. */
#ifndef VMRUN_PORTS_H
#define VMRUN_PORTS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Waits until the hypervisor has named its ports (fatal after ten seconds without vmrun.control),
 * then opens the SSH ports. The control port's device node is written to control. */
void ports_open(char *control, size_t size);

/* Opens again the ports that could not be opened before. */
void ports_retry(void);

/* True if pid was the sshd of a port. */
bool ports_child_ended(pid_t pid);

#endif
