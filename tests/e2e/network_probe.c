/*
 * What a container of the network tests executes.
 *
 *   network_probe serve PORT    a server; the first byte of a connection says what is wanted
 *   network_probe               reads one task a line, prints one line of what came of it
 *
 * A task that the kernel does not allow prints the errno's name; nothing here is allowed to hang.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 6000 /* ms */

static unsigned char buffer[1 << 16];

/* errno's name; musl has no strerrorname_np(3). */
static const char *name_of(int error)
{
	static const struct {
		int error;
		const char *name;
	} names[] = {
		{ 0, "ok" },
		{ EPERM, "EPERM" },
		{ EACCES, "EACCES" },
		{ EINVAL, "EINVAL" },
		{ ECONNREFUSED, "ECONNREFUSED" },
		{ ECONNRESET, "ECONNRESET" },
		{ EPIPE, "EPIPE" },
		{ ETIMEDOUT, "ETIMEDOUT" },
		{ ENETUNREACH, "ENETUNREACH" },
		{ EHOSTUNREACH, "EHOSTUNREACH" },
		{ EADDRNOTAVAIL, "EADDRNOTAVAIL" },
		{ EAFNOSUPPORT, "EAFNOSUPPORT" },
		{ EPROTONOSUPPORT, "EPROTONOSUPPORT" },
		{ ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT" },
		{ EMFILE, "EMFILE" },
		{ ENOSYS, "ENOSYS" },
	};
	static char number[24];
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		if (names[i].error == error)
			return names[i].name;
	snprintf(number, sizeof number, "errno-%d", error);
	return number;
}

union address {
	struct sockaddr any;
	struct sockaddr_in four;
	struct sockaddr_in6 six;
};

static socklen_t parse(const char *text, int port, union address *to)
{
	memset(to, 0, sizeof *to);
	if (inet_pton(AF_INET, text, &to->four.sin_addr) == 1) {
		to->four.sin_family = AF_INET;
		to->four.sin_port = htons((uint16_t)port);
		return sizeof to->four;
	}
	if (inet_pton(AF_INET6, text, &to->six.sin6_addr) == 1) {
		to->six.sin6_family = AF_INET6;
		to->six.sin6_port = htons((uint16_t)port);
		return sizeof to->six;
	}
	fprintf(stderr, "not an address: %s\n", text);
	exit(2);
}

static size_t from_hex(const char *text, unsigned char *out, size_t room)
{
	size_t size = 0;
	unsigned byte;
	for (; size < room && sscanf(text, "%2x", &byte) == 1; text += 2)
		out[size++] = (unsigned char)byte;
	return size;
}

static void say_hex(const unsigned char *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		printf("%02x", data[i]);
	printf("\n");
}

static bool wait_for(int fd, short what, int patience)
{
	struct pollfd watched = { fd, what, 0 };
	return poll(&watched, 1, patience) == 1;
}

/* A connected socket, or -1 with errno. */
static int dial(const char *text, int port, int patience)
{
	union address to;
	socklen_t size = parse(text, port, &to);
	int error = 0;
	socklen_t length = sizeof error;
	int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, &to.any, size) != 0) {
		if (errno != EINPROGRESS) {
			error = errno;
		} else if (!wait_for(fd, POLLOUT, patience)) {
			error = ETIMEDOUT;
		} else {
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
		}
	}
	if (error) {
		close(fd);
		errno = error;
		return -1;
	}
	fcntl(fd, F_SETFL, 0);
	return fd;
}

/* tcp ADDRESS PORT [HEX]: what the other side answers to HEX. */
static void tcp(const char *address, int port, const char *hex)
{
	static unsigned char data[1 << 16];
	size_t size = from_hex(hex, data, sizeof data), got = 0;
	int fd = dial(address, port, PATIENCE);
	if (fd < 0) {
		printf("%s\n", name_of(errno));
		return;
	}
	if (size && send(fd, data, size, MSG_NOSIGNAL) < 0) {
		printf("%s\n", name_of(errno));
		close(fd);
		return;
	}
	/* Who has answered and holds the line has said it all. */
	while (got < sizeof buffer && wait_for(fd, POLLIN, got ? 500 : PATIENCE)) {
		ssize_t n = recv(fd, buffer + got, sizeof buffer - got, 0);
		if (n < 0 && got == 0) {
			printf("%s\n", name_of(errno));
			close(fd);
			return;
		}
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	printf("=");
	say_hex(buffer, got);
	close(fd);
}

/* name NAME PORT HEX: tcp to what the resolver says. */
static void by_name(const char *name, const char *port, const char *hex)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL;
	char text[INET6_ADDRSTRLEN] = "";
	int error = getaddrinfo(name, port, &hints, &found);
	if (error) {
		printf("%s\n", gai_strerror(error));
		return;
	}
	getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
	freeaddrinfo(found);
	tcp(text, atoi(port), hex);
}

/* udp ADDRESS PORT HEX */
static void udp(const char *address, int port, const char *hex, int patience)
{
	union address to;
	socklen_t size = parse(address, port, &to);
	unsigned char data[2048];
	size_t length = from_hex(hex, data, sizeof data);
	int fd = socket(to.any.sa_family, SOCK_DGRAM, 0);
	if (fd < 0 || connect(fd, &to.any, size) != 0 || send(fd, data, length, 0) < 0) {
		printf("%s\n", name_of(errno));
	} else if (!wait_for(fd, POLLIN, patience)) {
		printf("silence\n");
	} else {
		ssize_t n = recv(fd, buffer, sizeof buffer, 0);
		if (n < 0) {
			printf("%s\n", name_of(errno));
		} else {
			printf("=");
			say_hex(buffer, (size_t)n);
		}
	}
	if (fd >= 0)
		close(fd);
}

/* ping ADDRESS */
static void ping(const char *address)
{
	union address to;
	socklen_t size = parse(address, 0, &to);
	struct icmphdr echo = { .type = ICMP_ECHO, .un.echo.sequence = htons(1) };
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	if (fd < 0)
		printf("socket %s\n", name_of(errno));
	else if (sendto(fd, &echo, sizeof echo, 0, &to.any, size) < 0)
		printf("%s\n", name_of(errno));
	else
		printf("%s\n", wait_for(fd, POLLIN, 1000) ? "answer" : "silence");
	if (fd >= 0)
		close(fd);
}

/* socket FAMILY TYPE PROTOCOL */
static void sockets(int family, int type, int protocol)
{
	int fd = socket(family, type, protocol);
	printf("%s\n", fd < 0 ? name_of(errno) : "made");
	if (fd >= 0)
		close(fd);
}

/* netlink address|route|link: change the network, as ip(8) would. */
static void netlink(const char *what)
{
	struct {
		struct nlmsghdr header;
		union {
			struct ifaddrmsg address;
			struct rtmsg route;
			struct ifinfomsg link;
		} body;
		unsigned char room[256];
	} message = { 0 };
	struct in_addr other;
	inet_pton(AF_INET, "10.88.0.77", &other);
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	if (fd < 0) {
		printf("%s\n", name_of(errno));
		return;
	}
	size_t body = 0;
	unsigned short kind = 0;
	message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
	if (strcmp(what, "address") == 0) {
		message.header.nlmsg_type = RTM_NEWADDR;
		message.body.address = (struct ifaddrmsg){ AF_INET, 32, 0, 0, if_nametoindex("eth0") };
		body = sizeof message.body.address;
		kind = IFA_LOCAL;
	} else if (strcmp(what, "route") == 0) {
		message.header.nlmsg_type = RTM_NEWROUTE;
		message.body.route = (struct rtmsg){
			.rtm_family = AF_INET, .rtm_dst_len = 32, .rtm_table = RT_TABLE_MAIN,
			.rtm_protocol = RTPROT_STATIC, .rtm_type = RTN_UNREACHABLE,
		};
		body = sizeof message.body.route;
		kind = RTA_DST;
	} else {
		message.header.nlmsg_type = RTM_NEWLINK;
		message.body.link = (struct ifinfomsg){
			.ifi_index = (int)if_nametoindex("eth0"), .ifi_flags = 0, .ifi_change = IFF_UP,
		};
		body = sizeof message.body.link;
	}
	message.header.nlmsg_len = NLMSG_LENGTH(body);
	if (kind) {
		struct rtattr *attribute =
			(struct rtattr *)((char *)&message + NLMSG_ALIGN(message.header.nlmsg_len));
		attribute->rta_type = kind;
		attribute->rta_len = RTA_LENGTH(4);
		memcpy(RTA_DATA(attribute), &other, 4);
		message.header.nlmsg_len = NLMSG_ALIGN(message.header.nlmsg_len) + RTA_LENGTH(4);
	}
	if (send(fd, &message, message.header.nlmsg_len, 0) < 0) {
		printf("%s\n", name_of(errno));
	} else {
		ssize_t got = recv(fd, buffer, sizeof buffer, 0);
		const struct nlmsghdr *answer = (const struct nlmsghdr *)buffer;
		const struct nlmsgerr *error = NLMSG_DATA(answer);
		if (got < (ssize_t)NLMSG_LENGTH(sizeof *error) || answer->nlmsg_type != NLMSG_ERROR)
			printf("what\n");
		else
			printf("%s\n", error->error ? name_of(-error->error) : "done");
	}
	close(fd);
}

/* spoof ADDRESS: send a query from another source address. */
static void spoof(const char *source, const char *address)
{
	union address from, to;
	int yes = 1;
	parse(source, 0, &from);
	socklen_t size = parse(address, 53, &to);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	int free_bind = setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &yes, sizeof yes) ? errno : 0;
	int transparent = setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &yes, sizeof yes) ? errno : 0;
	int bound = bind(fd, &from.any, sizeof from.four) ? errno : 0;
	const char query[] = "\0\1\1\0\0\1\0\0\0\0\0\0\2db\0\0\1\0\1";
	int sent = sendto(fd, query, sizeof query - 1, 0, &to.any, size) < 0 ? errno : 0;
	printf("%s %s %s %s %s\n", name_of(free_bind), name_of(transparent), name_of(bound),
	       name_of(sent), wait_for(fd, POLLIN, 700) ? "answer" : "silence");
	close(fd);
}

/* scan ADDRESS FIRST LAST: how many ports accept, refuse, do not answer. */
static void scan(const char *address, int first, int last)
{
	int open = 0, refused = 0, other = 0;
	for (int port = first; port <= last; port++) {
		int fd = dial(address, port, 1500);
		if (fd >= 0) {
			open++;
			close(fd);
		} else if (errno == ECONNREFUSED) {
			refused++;
		} else {
			other++;
		}
	}
	printf("%d %d %d\n", open, refused, other);
}

/* flood ADDRESS PORT COUNT: as many connections at once; how many are alive after a while. */
static void flood(const char *address, int port, int count)
{
	static struct pollfd all[1000];
	union address to;
	socklen_t size = parse(address, port, &to);
	int made = 0, alive = 0;
	for (int i = 0; i < count && i < 1000; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (fd < 0)
			break;
		connect(fd, &to.any, size);
		all[made++] = (struct pollfd){ fd, POLLIN | POLLOUT, 0 };
	}
	sleep(2);
	for (int i = 0; i < made; i++) {
		char byte;
		struct tcp_info info = { 0 };
		socklen_t length = sizeof info;
		getsockopt(all[i].fd, IPPROTO_TCP, TCP_INFO, &info, &length);
		ssize_t got = recv(all[i].fd, &byte, 1, MSG_DONTWAIT);
		if (info.tcpi_state == TCP_ESTABLISHED && (got > 0 || (got < 0 && errno == EAGAIN)))
			alive++;
		close(all[i].fd);
	}
	printf("%d %d\n", made, alive);
}

/* storm ADDRESS COUNT HEX: queries for as many names, whose first label, of 7 bytes, counts. */
static void storm(const char *address, int count, const char *hex)
{
	union address to;
	unsigned char data[2048];
	char label[16];
	size_t length = from_hex(hex, data, sizeof data);
	socklen_t size = parse(address, 53, &to);
	int sent = 0, fd = socket(AF_INET, SOCK_DGRAM, 0);
	for (int i = 0; i < count; i++) {
		snprintf(label, sizeof label, "%07d", i);
		memcpy(data + 13, label, 7);
		sent += sendto(fd, data, length, 0, &to.any, size) > 0;
	}
	close(fd);
	printf("%d\n", sent);
}

/* through ADDRESS PORT HEX BYTES: send HEX, then BYTES more; how many come back, and when (ms). */
static void through(const char *address, int port, const char *hex, long bytes)
{
	unsigned char data[4096];
	struct timespec begin, end;
	size_t length = from_hex(hex, data, sizeof data);
	int fd = dial(address, port, PATIENCE);
	long got = 0;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	if (fd < 0 || send(fd, data, length, MSG_NOSIGNAL) < 0) {
		printf("%s\n", name_of(errno));
		return;
	}
	if (bytes == 0)
		shutdown(fd, SHUT_WR);
	else if (fork() == 0) {
		static unsigned char zeros[1 << 16];
		for (long left = bytes; left > 0;) {
			ssize_t n = send(fd, zeros, left < (long)sizeof zeros ? (size_t)left : sizeof zeros,
					 MSG_NOSIGNAL);
			if (n <= 0)
				break;
			left -= n;
		}
		shutdown(fd, SHUT_WR);
		_exit(0);
	}
	while (wait_for(fd, POLLIN, 20000)) {
		ssize_t n = recv(fd, buffer, sizeof buffer, 0);
		if (n <= 0)
			break;
		got += n;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld %ld\n", got,
	       (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
	close(fd);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* --- the server -------------------------------------------------------------------------------- */

static void answer(int fd)
{
	char kind = 0;
	unsigned long long total = 0, sum = 0;
	ssize_t got;
	if (recv(fd, &kind, 1, 0) != 1)
		return;
	switch (kind) {
	case 'E': /* all of it back */
		while ((got = recv(fd, buffer, sizeof buffer, 0)) > 0)
			for (ssize_t at = 0, n; at < got; at += n)
				if ((n = send(fd, buffer + at, (size_t)(got - at), MSG_NOSIGNAL)) <= 0)
					return;
		break;
	case 'C': /* how much it was and the sum of its bytes, once it has ended */
		while ((got = recv(fd, buffer, sizeof buffer, 0)) > 0) {
			total += (unsigned long long)got;
			for (ssize_t i = 0; i < got; i++)
				sum += buffer[i];
		}
		dprintf(fd, "%llu %llu\n", total, sum);
		break;
	case 'S': /* that many bytes, 10 digits */
		if (recv(fd, buffer, 10, MSG_WAITALL) != 10)
			return;
		buffer[10] = 0;
		total = strtoull((char *)buffer, NULL, 10);
		memset(buffer, 'x', sizeof buffer);
		while (total) {
			got = send(fd, buffer, total < sizeof buffer ? (size_t)total : sizeof buffer,
				   MSG_NOSIGNAL);
			if (got <= 0)
				return;
			total -= (unsigned long long)got;
		}
		break;
	case 'R': { /* a reset */
		struct linger reset = { 1, 0 };
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
		break;
	}
	case 'W': /* who we are: its host name, and who it thinks connects */
	{
		struct sockaddr_in peer = { 0 };
		socklen_t size = sizeof peer;
		char name[65] = "";
		gethostname(name, sizeof name);
		getpeername(fd, (struct sockaddr *)&peer, &size);
		dprintf(fd, "%s %s\n", name, inet_ntoa(peer.sin_addr));
		break;
	}
	case 'Q': /* the whole container ends */
		kill(getppid(), SIGUSR1);
		break;
	}
}

static void end(int number)
{
	_exit(number == SIGTERM ? 0 : 3);
}

static int serve(int port)
{
	const int yes = 1;
	const struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (bind(listener, (const struct sockaddr *)&any, sizeof any) != 0 ||
	    listen(listener, 128) != 0) {
		perror("listen");
		return 1;
	}
	signal(SIGCHLD, SIG_IGN);
	signal(SIGUSR1, end);
	signal(SIGTERM, end);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		pid_t child = fork();
		if (child == 0) {
			close(listener);
			answer(fd);
			close(fd);
			_exit(0);
		}
		close(fd);
	}
}

int main(int count, char **arguments)
{
	static char line[1 << 18];
	if (count == 3 && strcmp(arguments[1], "serve") == 0)
		return serve(atoi(arguments[2]));
	signal(SIGPIPE, SIG_IGN);
	while (fgets(line, sizeof line, stdin) != NULL) {
		char *words[6] = { "", "", "", "", "", "" };
		size_t n = 0;
		line[strcspn(line, "\n")] = 0;
		for (char *word = strtok(line, " "); word != NULL && n < 6; word = strtok(NULL, " "))
			words[n++] = word;
		if (strcmp(words[0], "tcp") == 0)
			tcp(words[1], atoi(words[2]), words[3]);
		else if (strcmp(words[0], "name") == 0)
			by_name(words[1], words[2], words[3]);
		else if (strcmp(words[0], "udp") == 0)
			udp(words[1], atoi(words[2]), words[3], 1500);
		else if (strcmp(words[0], "ping") == 0)
			ping(words[1]);
		else if (strcmp(words[0], "socket") == 0)
			sockets(atoi(words[1]), atoi(words[2]), atoi(words[3]));
		else if (strcmp(words[0], "netlink") == 0)
			netlink(words[1]);
		else if (strcmp(words[0], "spoof") == 0)
			spoof(words[1], words[2]);
		else if (strcmp(words[0], "scan") == 0)
			scan(words[1], atoi(words[2]), atoi(words[3]));
		else if (strcmp(words[0], "flood") == 0)
			flood(words[1], atoi(words[2]), atoi(words[3]));
		else if (strcmp(words[0], "storm") == 0)
			storm(words[1], atoi(words[2]), words[3]);
		else if (strcmp(words[0], "through") == 0)
			through(words[1], atoi(words[2]), words[3], atol(words[4]));
		else
			printf("unknown task\n");
		fflush(stdout);
	}
	return 0;
}
