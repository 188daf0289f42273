/* What relay and attach share of a network: its arguments, and its devices' settings. */
#ifndef VMRUN_NETWORK_H
#define VMRUN_NETWORK_H

#include <netinet/in.h>
#include <stdbool.h>

struct network {
	struct in_addr address;
	unsigned prefix;
};

/* "10.90.0.1/24": an address of a host and the length of its network's prefix, 8 to 30. Exits
 * with EXIT_USAGE otherwise. */
struct network network_parse(const char *text);

struct in_addr network_parse_address(const char *text);

/* Whether address is one of the network's hosts. */
bool network_holds(struct network network, struct in_addr address);

/* Writes below /proc/sys/net of the calling thread's namespace. Exits with EXIT_NETWORK. */
void network_set(const char *key, const char *value);

/* Turns IPv6 off on a device ("all", "default"), if the kernel has it at all. */
void network_without_ipv6(const char *device);

#endif
