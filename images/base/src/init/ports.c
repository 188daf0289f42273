/*
 * A port is opened, and so taken, by this process alone: the driver allows one opener. sshd gets
 * the same open file as its standard input and output; when it has ended the port is closed, which
 * makes the driver discard what an earlier client left, and opened again.
 */
#include "init/ports.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"
#include "init/identity.h"
#include "init/loop.h"
#include "init/process.h"

#define CLASS "/sys/class/virtio-ports"
#define CONTROL_NAME "vmrun.control"
#define SSH_PREFIX "vmrun.ssh."
#define MAX_PORTS 32
#define RETRY_MS 20

struct port {
	struct source source; /* first: the loop hands this back */
	char node[64];
	pid_t sshd; /* 0: nobody is connected */
};

static struct port ports[MAX_PORTS];
static size_t port_count;

static void port_ready(struct source *source, uint32_t events);

static void port_open(struct port *port)
{
	port->source.fd = open(port->node, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (port->source.fd < 0) {
		loop_retry_in(RETRY_MS);
		return;
	}
	port->source.ready = port_ready;
	loop_watch(&port->source);
}

/* While sshd serves, the port is not watched: every packet would wake this process as well. sshd
 * sees by itself when the host goes away. */
static void start_sshd(struct port *port)
{
	char *const arguments[] = { "/usr/sbin/sshd", "-i", "-e", NULL };
	loop_forget(&port->source);
	/* sshd expects a blocking descriptor to start with. */
	fcntl(port->source.fd, F_SETFL, 0);
	port->sshd = process_start(arguments, port->source.fd, "/run/vmrun/log/sshd");
	if (port->sshd < 0) {
		port->sshd = 0;
		close(port->source.fd);
		port->source.fd = -1;
		loop_retry_in(RETRY_MS);
	}
}

/* Drops what came before the guest has its identity. */
static void discard(const struct port *port)
{
	char buffer[512];
	while (read(port->source.fd, buffer, sizeof buffer) > 0)
		;
}

static void port_ready(struct source *source, uint32_t events)
{
	struct port *port = (struct port *)source;

	if (!identity_done())
		discard(port);
	/* A port without a client reads as at its end, so EPOLLIN alone does not mean bytes. With
	 * EPOLLHUP they may also be a new client's: the driver can deliver them before it has
	 * noticed the connection, and signals another edge when it does. */
	else if ((events & EPOLLIN) && !(events & EPOLLHUP))
		start_sshd(port);
}

void ports_retry(void)
{
	for (size_t i = 0; i < port_count; i++)
		if (ports[i].source.fd < 0)
			port_open(&ports[i]);
}

bool ports_child_ended(pid_t pid)
{
	for (size_t i = 0; i < port_count; i++) {
		if (ports[i].sshd != pid)
			continue;
		/* What sshd left behind would keep the port from being opened again. */
		kill(-pid, SIGKILL);
		ports[i].sshd = 0;
		close(ports[i].source.fd);
		port_open(&ports[i]);
		return true;
	}
	return false;
}

/* One look at all ports. True once the control port is there and every port has its name: the
 * hypervisor announces all ports before it names the first. */
static bool scan(char *control, size_t size)
{
	bool complete = true, found = false;
	DIR *class = opendir(CLASS);
	if (class == NULL)
		return false;
	port_count = 0;
	for (struct dirent *entry; (entry = readdir(class)) != NULL;) {
		char path[320], name[64];
		if (entry->d_name[0] == '.' || strlen(entry->d_name) > 32)
			continue;
		snprintf(path, sizeof path, CLASS "/%s/name", entry->d_name);
		if (text_read(path, name, sizeof name) <= 0) {
			complete = false;
		} else if (strcmp(name, CONTROL_NAME) == 0) {
			snprintf(control, size, "/dev/%s", entry->d_name);
			found = true;
		} else if (strncmp(name, SSH_PREFIX, strlen(SSH_PREFIX)) == 0 &&
			   port_count < MAX_PORTS) {
			struct port *port = &ports[port_count++];
			snprintf(port->node, sizeof port->node, "/dev/%.32s", entry->d_name);
			port->source.fd = -1;
		}
	}
	closedir(class);
	return complete && found;
}

void ports_open(char *control, size_t size)
{
	const struct timespec pause = { .tv_nsec = 2000000 };
	for (int tries = 0; !scan(control, size); tries++) {
		if (tries == 5000)
			fatal("no virtio-serial port named " CONTROL_NAME);
		nanosleep(&pause, NULL);
	}
	for (size_t i = 0; i < port_count; i++)
		port_open(&ports[i]);
}
