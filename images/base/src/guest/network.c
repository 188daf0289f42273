#include "guest/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"

#define SETTINGS "/proc/sys/net/"

struct in_addr network_parse_address(const char *text)
{
	struct in_addr address;
	if (inet_pton(AF_INET, text, &address) != 1)
		fail(EXIT_USAGE, "not an IPv4 address: %.100s", text);
	uint32_t number = ntohl(address.s_addr);
	/* 0/8 is this network, 127/8 loopback, 224/3 multicast and reserved. */
	if (number >> 24 == 0 || number >> 24 == 127 || number >> 29 == 7)
		fail(EXIT_USAGE, "not an address of a host: %.100s", text);
	return address;
}

bool network_holds(struct network network, struct in_addr address)
{
	uint32_t mask = UINT32_MAX << (32 - network.prefix);
	uint32_t number = ntohl(address.s_addr), host = number & ~mask;
	return ((number ^ ntohl(network.address.s_addr)) & mask) == 0 && host != 0 && host != ~mask;
}

struct network network_parse(const char *text)
{
	char address[INET_ADDRSTRLEN] = "";
	uint64_t prefix = 0;
	const char *slash = strchr(text, '/');
	if (slash == NULL || (size_t)(slash - text) >= sizeof address ||
	    !text_number(slash + 1, 30, &prefix) || prefix < 8)
		fail(EXIT_USAGE, "not ADDRESS/PREFIX: %.100s", text);
	memcpy(address, text, (size_t)(slash - text));
	struct network network = { network_parse_address(address), (unsigned)prefix };
	if (!network_holds(network, network.address))
		fail(EXIT_USAGE, "not an address of a host: %.100s", text);
	return network;
}

void network_set(const char *key, const char *value)
{
	char path[128];
	snprintf(path, sizeof path, SETTINGS "%s", key);
	if (text_write(path, value) != 0)
		fail(EXIT_NETWORK, "%s: %s", path, strerror(errno));
}

void network_without_ipv6(const char *device)
{
	char key[64];
	if (access(SETTINGS "ipv6", F_OK) != 0 && errno == ENOENT)
		return;
	snprintf(key, sizeof key, "ipv6/conf/%s/disable_ipv6", device);
	network_set(key, "1");
}
