/* What the supervising init does once, before it answers anybody. */
#ifndef VMRUN_SETUP_H
#define VMRUN_SETUP_H

void setup_filesystems(void);

/* cgroup v2, with the controllers on; the init itself, and so sshd, moves into /system. */
void setup_cgroups(void);

void setup_loopback(void);

/* Applies /usr/lib/vmrun/sysctl.conf; what this kernel does not know is reported and skipped. */
void setup_sysctls(void);

#endif
