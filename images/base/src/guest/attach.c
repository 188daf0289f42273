/*
 * attach RELAY_PID TARGET_PID ADDRESS/PREFIX GATEWAY
 *
 * Lays a wire between a relay's network namespace and a container's. Each container has a pair of
 * devices of its own, and a route of 32 bits leads to it: with the relay's strict reverse-path
 * filter it can neither use another's address nor see another's frames.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"
#include "guest/netlink.h"
#include "guest/network.h"

#define DEVICE "eth0"

static void check(int result, const char *what)
{
	if (result != 0)
		fail(EXIT_NETWORK, "%s: %s", what, strerror(errno));
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* The network namespace of a process, which must not be the guest's own. */
static int namespace_of(const char *pid)
{
	char path[64];
	uint64_t number;
	struct stat own, other;
	if (!text_number(pid, INT32_MAX, &number) || number == 0)
		fail(EXIT_USAGE, "not a process id: %.100s", pid);
	snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &other) != 0 || stat("/proc/self/ns/net", &own) != 0)
		fail(EXIT_NETWORK, "process %s: %s", pid, strerror(errno));
	if (same_file(&own, &other))
		fail(EXIT_NETWORK, "process %s has no network namespace of its own", pid);
	return fd;
}

/* A relay is a process of this very program: a number that now means another process must not
 * lead into its namespace. */
static void check_relay(const char *pid)
{
	char path[64];
	struct stat own, other;
	snprintf(path, sizeof path, "/proc/%s/exe", pid);
	if (stat(path, &other) != 0 || stat("/proc/self/exe", &own) != 0)
		fail(EXIT_NETWORK, "process %s: %s", pid, strerror(errno));
	if (!same_file(&own, &other))
		fail(EXIT_NETWORK, "process %s is no relay", pid);
}

static void enter(int namespace)
{
	check(setns(namespace, CLONE_NEWNET), "enter a network namespace");
}

static void set_up_container(struct network network, struct in_addr gateway)
{
	int fd = netlink_open();
	struct netlink_route route = {
		.table = RT_TABLE_MAIN,
		.kind = RTN_UNICAST,
		.scope = RT_SCOPE_LINK,
		.to = gateway,
		.prefix = 32,
	};
	if (fd < 0)
		fail(EXIT_NETWORK, "netlink: %s", strerror(errno));
	network_without_ipv6(DEVICE);
	check(netlink_set_up(fd, "lo"), "set lo up");
	check(netlink_add_address(fd, DEVICE, network.address, network.prefix), "add the address");
	check(netlink_set_up(fd, DEVICE), "set " DEVICE " up");
	check(netlink_add_route(fd, DEVICE, &route), "add the route to the gateway");
	route = (struct netlink_route){
		.table = RT_TABLE_MAIN,
		.kind = RTN_UNICAST,
		.scope = RT_SCOPE_UNIVERSE,
		.via = gateway,
	};
	check(netlink_add_route(fd, DEVICE, &route), "add the default route");
	close(fd);
}

int attach(int count, char **arguments)
{
	char name[16];
	if (count != 4)
		fail(EXIT_USAGE, "usage: attach RELAY_PID TARGET_PID ADDRESS/PREFIX GATEWAY");
	struct network network = network_parse(arguments[2]);
	struct in_addr gateway = network_parse_address(arguments[3]);
	if (!network_holds(network, gateway) || gateway.s_addr == network.address.s_addr)
		fail(EXIT_USAGE, "not a gateway of %s: %.100s", arguments[2], arguments[3]);
	int relay = namespace_of(arguments[0]), target = namespace_of(arguments[1]);
	check_relay(arguments[0]);

	enter(relay);
	int fd = netlink_open();
	if (fd < 0)
		fail(EXIT_NETWORK, "netlink: %s", strerror(errno));
	/* The address belongs to one container at a time. What is left of the last one goes a
	 * moment after its namespace, and maybe now. */
	snprintf(name, sizeof name, "c%08x", ntohl(network.address.s_addr));
	if (netlink_remove(fd, name) != 0 && errno != ENODEV)
		fail(EXIT_NETWORK, "remove %s: %s", name, strerror(errno));
	check(netlink_add_pair(fd, name, DEVICE, target), "make " DEVICE);
	const struct netlink_route route = {
		.table = RT_TABLE_LOCAL,
		.kind = RTN_UNICAST,
		.scope = RT_SCOPE_LINK,
		.to = network.address,
		.prefix = 32,
		.source = gateway,
	};
	check(netlink_set_up(fd, name), "set the relay's device up");
	check(netlink_add_route(fd, name, &route), "add the route to the container");
	close(fd);
	enter(target);
	set_up_container(network, gateway);
	return EXIT_DONE;
}
