/*
 * relay GATEWAY/PREFIX [listen=PORT,PORT,…]
 *
 * A network without a way out: in a namespace of its own every IPv4 address is the relay's, and
 * what containers send to any of them goes to the host, which decides. The relay decides nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/allowance.h"
#include "guest/confine.h"
#include "guest/guest.h"
#include "guest/netlink.h"
#include "guest/network.h"
#include "guest/streams.h"
#include "guest/wire.h"

#define LISTENERS 64
#define BACKLOG 128
#define DNS 53

static const uint16_t always[] = { DNS, 1080, 3128 };

static uint16_t ports[LISTENERS];
static size_t port_count;
static int listeners[LISTENERS], datagrams;

static void check(int result, const char *what)
{
	if (result < 0)
		fail(EXIT_NETWORK, "%s: %s", what, strerror(errno));
}

static void add_port(uint64_t port)
{
	for (size_t i = 0; i < port_count; i++)
		if (ports[i] == port)
			return;
	if (port_count == LISTENERS)
		fail(EXIT_USAGE, "more than %d ports", LISTENERS);
	ports[port_count++] = (uint16_t)port;
}

static void parse_ports(const char *argument)
{
	static const char key[] = "listen=";
	char word[8];
	if (strncmp(argument, key, strlen(key)) != 0)
		fail(EXIT_USAGE, "not listen=PORT,…: %.100s", argument);
	for (const char *at = argument + strlen(key);;) {
		size_t length = strcspn(at, ",");
		uint64_t port = 0;
		snprintf(word, sizeof word, "%.*s", (int)(length < 7 ? length : 7), at);
		if (!text_number(word, UINT16_MAX, &port) || port == 0)
			fail(EXIT_USAGE, "not a port: %.100s", at);
		add_port(port);
		if (at[length] == '\0')
			return;
		at += length + 1;
	}
}

/* --- the namespace ----------------------------------------------------------------------------- */

static void set_kernel(void)
{
	static const char *const settings[][2] = {
		/* First: it changes others. Only routes to containers lead anywhere but here. */
		{ "ipv4/ip_forward", "1" },
		/* A container can send only from the address that its device leads to. */
		{ "ipv4/conf/all/rp_filter", "1" },
		{ "ipv4/conf/default/rp_filter", "1" },
		{ "ipv4/conf/all/accept_local", "0" },
		{ "ipv4/conf/all/accept_redirects", "0" },
		{ "ipv4/conf/default/accept_redirects", "0" },
		{ "ipv4/conf/all/send_redirects", "0" },
		{ "ipv4/conf/default/send_redirects", "0" },
		{ "ipv4/conf/all/accept_source_route", "0" },
		{ "ipv4/conf/default/accept_source_route", "0" },
		/* What containers could fill the console with. */
		{ "ipv4/conf/all/log_martians", "0" },
		{ "ipv4/conf/default/log_martians", "0" },
		/* Otherwise every address in the world would answer. */
		{ "ipv4/icmp_echo_ignore_all", "1" },
		/* What the kernel buffers of one connection, and how long it waits for a container
		 * that has gone: some 100 seconds. */
		{ "ipv4/tcp_rmem", "4096 65536 262144" },
		{ "ipv4/tcp_wmem", "4096 65536 262144" },
		{ "ipv4/tcp_retries2", "8" },
		{ "ipv4/tcp_syn_retries", "3" },
	};
	for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
		network_set(settings[i][0], settings[i][1]);
	network_without_ipv6("all");
	network_without_ipv6("default");
}

static void make_network(struct network network)
{
	/* In the table that is asked first and for source addresses too; the longer prefixes of
	 * containers win. */
	const struct netlink_route everything = {
		.table = RT_TABLE_LOCAL,
		.kind = RTN_LOCAL,
		.scope = RT_SCOPE_HOST,
	};
	check(unshare(CLONE_NEWNET), "make a network namespace");
	set_kernel();
	int fd = netlink_open();
	check(fd, "netlink");
	check(netlink_set_up(fd, "lo"), "set lo up");
	check(netlink_add_address(fd, "lo", network.address, 32), "add the gateway's address");
	check(netlink_add_route(fd, "lo", &everything), "add the route to everything");
	close(fd);
}

static int bound(int type, uint16_t port)
{
	const struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&any, sizeof any) != 0)
		fail(EXIT_NETWORK, "port %u: %s", port, strerror(errno));
	return fd;
}

static void listen_everywhere(void)
{
	const int yes = 1;
	for (size_t i = 0; i < port_count; i++) {
		listeners[i] = bound(SOCK_STREAM, ports[i]);
		check(listen(listeners[i], BACKLOG), "listen");
	}
	datagrams = bound(SOCK_DGRAM, DNS);
	check(setsockopt(datagrams, IPPROTO_IP, IP_PKTINFO, &yes, sizeof yes), "IP_PKTINFO");
}

/* --- DNS --------------------------------------------------------------------------------------- */

union control {
	struct cmsghdr header;
	unsigned char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
};

static struct in_addr destination_of(struct msghdr *message)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(message);
	struct in_addr none = { 0 };
	if (header == NULL || header->cmsg_level != IPPROTO_IP || header->cmsg_type != IP_PKTINFO)
		return none;
	struct in_pktinfo info;
	memcpy(&info, CMSG_DATA(header), sizeof info);
	return info.ipi_addr;
}

static void take_datagrams(void)
{
	for (int i = 0; i < 16 && wire_room(); i++) {
		union control control;
		struct sockaddr_in source, destination = {
			.sin_family = AF_INET,
			.sin_port = htons(DNS),
		};
		unsigned char *place = wire_place();
		struct iovec data = { place + 2 * WIRE_ENDPOINT, WIRE_DATAGRAM_MAX };
		struct msghdr message = {
			.msg_name = &source,
			.msg_namelen = sizeof source,
			.msg_iov = &data,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = sizeof control,
		};
		ssize_t got = recvmsg(datagrams, &message, 0);
		if (got < 0)
			return;
		destination.sin_addr = destination_of(&message);
		if (message.msg_flags & MSG_TRUNC || destination.sin_addr.s_addr == 0 ||
		    !allowance_take(ALLOWANCE_DATAGRAM, source.sin_addr))
			continue;
		wire_write_endpoint(place, &source);
		wire_write_endpoint(place + WIRE_ENDPOINT, &destination);
		wire_put(WIRE_DATAGRAM, 0, place, 2 * WIRE_ENDPOINT + (size_t)got);
	}
}

/* The host's answer goes back the way the query came. */
static void send_datagram(const struct wire_frame *frame)
{
	union control control = { 0 };
	if (frame->size < 2 * WIRE_ENDPOINT || frame->stream != 0)
		fail(EXIT_NETWORK, "a datagram of the host is malformed");
	struct sockaddr_in to = wire_endpoint(frame->payload);
	struct sockaddr_in from = wire_endpoint(frame->payload + WIRE_ENDPOINT);
	struct iovec data = {
		(void *)(frame->payload + 2 * WIRE_ENDPOINT),
		frame->size - 2 * WIRE_ENDPOINT,
	};
	struct msghdr message = {
		.msg_name = &to,
		.msg_namelen = sizeof to,
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};
	const struct in_pktinfo info = { .ipi_spec_dst = from.sin_addr };
	control.header = (struct cmsghdr){
		.cmsg_len = CMSG_LEN(sizeof info),
		.cmsg_level = IPPROTO_IP,
		.cmsg_type = IP_PKTINFO,
	};
	memcpy(CMSG_DATA(&control.header), &info, sizeof info);
	/* Lost like any other datagram if it does not go at once. */
	(void)sendmsg(datagrams, &message, 0);
}

/* --- the loop ---------------------------------------------------------------------------------- */

/* False if frames are left for which there was no room. */
static bool take_frames(struct network network)
{
	struct wire_frame frame;
	while (wire_room()) {
		if (!wire_next(&frame))
			return true;
		if (frame.kind == WIRE_DATAGRAM)
			send_datagram(&frame);
		else
			streams_receive(&frame, network);
	}
	return false;
}

static _Noreturn void serve(struct network network)
{
	enum { HOST_OUT, HOST_IN, QUERIES, FIXED };
	static struct pollfd watched[FIXED + LISTENERS + WIRE_STREAMS];
	bool all_taken = true;
	for (;;) {
		/* Without room nothing is taken from anywhere until the host has read. */
		short in = wire_room() ? POLLIN : 0;
		watched[HOST_OUT] = (struct pollfd){ STDOUT_FILENO, wire_waiting() ? POLLOUT : 0, 0 };
		watched[HOST_IN] = (struct pollfd){ STDIN_FILENO, in, 0 };
		watched[QUERIES] = (struct pollfd){ datagrams, in, 0 };
		for (size_t i = 0; i < port_count; i++)
			watched[FIXED + i] = (struct pollfd){ listeners[i], in, 0 };
		size_t before = FIXED + port_count;
		size_t count = in ? streams_watch(watched + before) : 0;
		if (poll(watched, before + count, in && !all_taken ? 0 : -1) < 0) {
			if (errno == EINTR)
				continue;
			fail(EXIT_NETWORK, "poll: %s", strerror(errno));
		}
		if (watched[HOST_OUT].revents)
			wire_flush();
		if (watched[HOST_IN].revents)
			wire_fill();
		all_taken = take_frames(network);
		streams_serve(watched + before, count);
		for (size_t i = 0; i < port_count; i++)
			if (watched[FIXED + i].revents)
				streams_accept(listeners[i]);
		if (watched[QUERIES].revents)
			take_datagrams();
		wire_flush();
	}
}

static void say_hello(void)
{
	unsigned char payload[8];
	wire_write_number(payload, WIRE_VERSION);
	wire_write_number(payload + 4, (uint32_t)getpid());
	wire_put(WIRE_HELLO, 0, payload, sizeof payload);
}

int relay(int count, char **arguments)
{
	const struct rlimit files = { WIRE_STREAMS + 128, WIRE_STREAMS + 128 };
	if (count != 1 && count != 2)
		fail(EXIT_USAGE, "usage: relay GATEWAY/PREFIX [listen=PORT,…]");
	struct network network = network_parse(arguments[0]);
	for (size_t i = 0; i < sizeof always / sizeof always[0]; i++)
		add_port(always[i]);
	if (count == 2)
		parse_ports(arguments[1]);
	check(fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK), "stdin");
	check(fcntl(STDOUT_FILENO, F_SETFL, O_NONBLOCK), "stdout");
	check(setrlimit(RLIMIT_NOFILE, &files), "limit open files");
	make_network(network);
	listen_everywhere();
	say_hello(); /* is written when all is done */
	confine();
	serve(network);
}
