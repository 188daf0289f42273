/*
 * The few requests of rtnetlink(7) that a wire needs. Each waits for the kernel's answer and
 * returns 0, or -1 with errno set.
 */
#ifndef VMRUN_NETLINK_H
#define VMRUN_NETLINK_H

#include <netinet/in.h>

/* A socket for the network namespace of the calling thread. */
int netlink_open(void);

/* Makes a pair of virtual Ethernet devices, the peer in the namespace that peer_namespace is open
 * on. */
int netlink_add_pair(int fd, const char *name, const char *peer, int peer_namespace);

int netlink_remove(int fd, const char *name);

int netlink_set_up(int fd, const char *name);

/* An address without a route of its own to the rest of its network. */
int netlink_add_address(int fd, const char *name, struct in_addr address, unsigned prefix);

struct netlink_route {
	unsigned char table, kind, scope; /* RT_TABLE_…, RTN_…, RT_SCOPE_… */
	struct in_addr to;
	unsigned prefix;
	struct in_addr via, source; /* 0.0.0.0: none */
};

int netlink_add_route(int fd, const char *name, const struct netlink_route *route);

#endif
