/* How often one container is served, so that it cannot keep the relay from serving others. */
#ifndef VMRUN_ALLOWANCE_H
#define VMRUN_ALLOWANCE_H

#include <netinet/in.h>
#include <stdbool.h>

enum allowance { ALLOWANCE_CONNECTION, ALLOWANCE_DATAGRAM };

/* Whether one more of source is within its rate; counts it if so. */
bool allowance_take(enum allowance kind, struct in_addr source);

#endif
