/* dial SOCKET: joins stdin and stdout with a Unix socket, each direction closed on its own. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"

static void copy(int from, int to)
{
	static char buffer[65536];
	for (;;) {
		ssize_t got = read(from, buffer, sizeof buffer);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0 || write_all(to, buffer, (size_t)got) != 0)
			return;
	}
}

int dial(int count, char **arguments)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (count != 1 || strlen(arguments[0]) >= sizeof address.sun_path)
		fail(EXIT_USAGE, "usage: dial SOCKET");
	strcpy(address.sun_path, arguments[0]);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		fail(1, "%s: %s", arguments[0], strerror(errno));

	/* One process a direction: neither can block the other. */
	pid_t sender = fork();
	if (sender < 0)
		fail(1, "fork: %s", strerror(errno));
	if (sender == 0) {
		copy(STDIN_FILENO, fd);
		shutdown(fd, SHUT_WR);
		_exit(0);
	}
	copy(fd, STDOUT_FILENO);
	kill(sender, SIGKILL);
	return EXIT_DONE;
}
