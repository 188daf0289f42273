#include "guest/netlink.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
	struct nlmsghdr header;
	unsigned char body[512];
};

int netlink_open(void)
{
	return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
}

static void add_bytes(struct request *request, const void *data, size_t size)
{
	/* All callers together need less than half of the body. */
	if (size > 0)
		memcpy((unsigned char *)request + request->header.nlmsg_len, data, size);
	request->header.nlmsg_len += (uint32_t)NLMSG_ALIGN(size);
}

static void start(struct request *request, unsigned type, unsigned flags, const void *family,
		  size_t size)
{
	memset(request, 0, sizeof *request);
	request->header.nlmsg_len = NLMSG_HDRLEN;
	request->header.nlmsg_type = (uint16_t)type;
	request->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
	request->header.nlmsg_seq = 1;
	add_bytes(request, family, size);
}

static void add(struct request *request, unsigned type, const void *data, size_t size)
{
	struct rtattr attribute = { (unsigned short)RTA_LENGTH(size), (unsigned short)type };
	add_bytes(request, &attribute, sizeof attribute);
	add_bytes(request, data, size);
}

static void add_name(struct request *request, const char *name)
{
	add(request, IFLA_IFNAME, name, strlen(name) + 1);
}

/* What is added until close_nest() lies within the attribute. */
static uint32_t open_nest(struct request *request, unsigned type)
{
	uint32_t position = request->header.nlmsg_len;
	add(request, type, NULL, 0);
	return position;
}

static void close_nest(struct request *request, uint32_t position)
{
	struct rtattr *attribute = (struct rtattr *)((unsigned char *)request + position);
	attribute->rta_len = (unsigned short)(request->header.nlmsg_len - position);
}

static int perform(int fd, struct request *request)
{
	union {
		struct nlmsghdr header;
		unsigned char bytes[1024];
	} answer;
	if (send(fd, request, request->header.nlmsg_len, 0) < 0)
		return -1;
	ssize_t got = recv(fd, &answer, sizeof answer, 0);
	if (got < 0)
		return -1;
	if ((size_t)got < NLMSG_LENGTH(sizeof(struct nlmsgerr)) ||
	    answer.header.nlmsg_type != NLMSG_ERROR) {
		errno = EPROTO;
		return -1;
	}
	const struct nlmsgerr *verdict = NLMSG_DATA(&answer.header);
	errno = -verdict->error;
	return verdict->error == 0 ? 0 : -1;
}

int netlink_add_pair(int fd, const char *name, const char *peer, int peer_namespace)
{
	struct request request;
	const struct ifinfomsg link = { .ifi_family = AF_UNSPEC };
	start(&request, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
	add_name(&request, name);
	uint32_t info = open_nest(&request, IFLA_LINKINFO);
	add(&request, IFLA_INFO_KIND, "veth", sizeof "veth");
	uint32_t data = open_nest(&request, IFLA_INFO_DATA);
	uint32_t other = open_nest(&request, VETH_INFO_PEER);
	add_bytes(&request, &link, sizeof link);
	add_name(&request, peer);
	add(&request, IFLA_NET_NS_FD, &peer_namespace, sizeof peer_namespace);
	close_nest(&request, other);
	close_nest(&request, data);
	close_nest(&request, info);
	return perform(fd, &request);
}

static int index_of(const char *name)
{
	unsigned index = if_nametoindex(name);
	if (index == 0)
		errno = ENODEV;
	return (int)index;
}

int netlink_remove(int fd, const char *name)
{
	struct request request;
	struct ifinfomsg link = { .ifi_family = AF_UNSPEC, .ifi_index = index_of(name) };
	if (link.ifi_index == 0)
		return -1;
	start(&request, RTM_DELLINK, 0, &link, sizeof link);
	return perform(fd, &request);
}

int netlink_set_up(int fd, const char *name)
{
	struct request request;
	struct ifinfomsg link = {
		.ifi_family = AF_UNSPEC,
		.ifi_index = index_of(name),
		.ifi_flags = IFF_UP,
		.ifi_change = IFF_UP,
	};
	if (link.ifi_index == 0)
		return -1;
	start(&request, RTM_NEWLINK, 0, &link, sizeof link);
	return perform(fd, &request);
}

int netlink_add_address(int fd, const char *name, struct in_addr address, unsigned prefix)
{
	struct request request;
	const uint32_t flags = IFA_F_PERMANENT | IFA_F_NOPREFIXROUTE;
	const struct ifaddrmsg header = {
		.ifa_family = AF_INET,
		.ifa_prefixlen = (unsigned char)prefix,
		.ifa_scope = RT_SCOPE_UNIVERSE,
		.ifa_index = (uint32_t)index_of(name),
	};
	if (header.ifa_index == 0)
		return -1;
	start(&request, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &header, sizeof header);
	add(&request, IFA_LOCAL, &address, sizeof address);
	add(&request, IFA_ADDRESS, &address, sizeof address);
	add(&request, IFA_FLAGS, &flags, sizeof flags);
	return perform(fd, &request);
}

int netlink_add_route(int fd, const char *name, const struct netlink_route *route)
{
	struct request request;
	const int device = index_of(name);
	const struct rtmsg header = {
		.rtm_family = AF_INET,
		.rtm_dst_len = (unsigned char)route->prefix,
		.rtm_table = route->table,
		.rtm_protocol = RTPROT_STATIC,
		.rtm_scope = route->scope,
		.rtm_type = route->kind,
	};
	if (device == 0)
		return -1;
	start(&request, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header, sizeof header);
	if (route->prefix > 0)
		add(&request, RTA_DST, &route->to, sizeof route->to);
	if (route->via.s_addr != 0)
		add(&request, RTA_GATEWAY, &route->via, sizeof route->via);
	if (route->source.s_addr != 0)
		add(&request, RTA_PREFSRC, &route->source, sizeof route->source);
	add(&request, RTA_OIF, &device, sizeof device);
	return perform(fd, &request);
}
