/* The lease: when nobody renews it, the guest powers itself off. */
#ifndef VMRUN_LEASE_H
#define VMRUN_LEASE_H

#include <stdint.h>

#define LEASE_MAX_SECONDS 31536000

/* Starts the lease with vmrun.lease from the kernel command line, which must be there: a guest
 * without a lease might outlive everybody who knows of it. */
void lease_open(void);

/* The guest powers off this many seconds (1 to LEASE_MAX_SECONDS) from now. */
void lease_renew(uint64_t seconds);

#endif
