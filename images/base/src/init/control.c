#include "init/control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"
#include "init/identity.h"
#include "init/lease.h"
#include "init/loop.h"

#define LINE_MAX_BYTES 4096
#define REPLY_MAX_BYTES 256
#define FAREWELL_MS 200

static void control_ready(struct source *source, uint32_t events);

static struct source port = { .fd = -1, .ready = control_ready };
static char input[LINE_MAX_BYTES];
static size_t input_length;
static bool discarding; /* the rest of a line that is too long */
static char output[16 * REPLY_MAX_BYTES];
static size_t output_length;
static bool connected, pending;

void control_send(const char *line)
{
	size_t length = strlen(line);
	if (!connected || length > sizeof output - output_length)
		return;
	memcpy(output + output_length, line, length);
	output_length += length;
	pending = true;
}

static void reply_error(const char *reason)
{
	char line[REPLY_MAX_BYTES];
	snprintf(line, sizeof line, "error %s\n", reason);
	control_send(line);
}

static void say_hello(void)
{
	char flavour[32] = "", boot_id[64] = "", line[REPLY_MAX_BYTES];
	struct utsname kernel;
	uname(&kernel);
	text_read("/usr/lib/vmrun/flavour", flavour, sizeof flavour);
	text_read("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
	snprintf(line, sizeof line, "hello vmrun/1 flavour=%s kernel=%s boot_id=%s identified=%d\n",
		 flavour, kernel.release, boot_id, identity_done());
	control_send(line);
}

static void flush_output(void)
{
	while (output_length > 0) {
		ssize_t done = write(port.fd, output, output_length);
		if (done <= 0)
			return;
		output_length -= (size_t)done;
		memmove(output, output + done, output_length);
	}
}

static _Noreturn void power_off_politely(void)
{
	struct pollfd writable = { .fd = port.fd, .events = POLLOUT };
	control_send("ok poweroff\n");
	flush_output();
	if (output_length > 0 && poll(&writable, 1, FAREWELL_MS) > 0)
		flush_output();
	power_off();
}

static void renew_lease(const char *text)
{
	uint64_t seconds;
	if (!text_number(text, LEASE_MAX_SECONDS, &seconds) || seconds == 0) {
		reply_error("malformed lease");
		return;
	}
	lease_renew(seconds);
	control_send("ok lease\n");
}

static void handle_line(char *line)
{
	const char *error = NULL;
	/* Also ends a block that an earlier host left open without a hang-up in between. */
	if (strcmp(line, "hello") == 0) {
		identity_abandon();
		say_hello();
	} else if (identity_collecting() && strcmp(line, "end") == 0) {
		error = identity_end();
	} else if (identity_collecting()) {
		identity_line(line);
	} else if (*line == '\0') {
		return;
	} else if (strcmp(line, "identify") == 0) {
		error = identity_begin();
	} else if (strncmp(line, "lease ", 6) == 0) {
		renew_lease(line + 6);
	} else if (strcmp(line, "ping") == 0) {
		control_send("ok ping\n");
	} else if (strcmp(line, "poweroff") == 0) {
		power_off_politely();
	} else {
		error = "unknown command";
	}
	if (error != NULL)
		reply_error(error);
}

static bool is_text(const char *line, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (line[i] < ' ' || line[i] > '~')
			return false;
	return true;
}

static void take_line(char *line, size_t length)
{
	line[length] = '\0';
	if (discarding)
		discarding = false;
	else if (is_text(line, length))
		handle_line(line);
	else
		reply_error("not printable ASCII");
}

/* Handles the complete lines in input, as long as there is room for their replies. */
static void handle_input(void)
{
	size_t start = 0;
	while (sizeof output - output_length >= REPLY_MAX_BYTES) {
		char *end = memchr(input + start, '\n', input_length - start);
		if (end == NULL)
			break;
		size_t length = (size_t)(end - input) - start;
		take_line(input + start, length);
		start += length + 1;
	}
	input_length -= start;
	memmove(input, input + start, input_length);
	if (input_length == sizeof input && memchr(input, '\n', input_length) == NULL) {
		if (!discarding)
			reply_error("line too long");
		discarding = true;
		input_length = 0;
	}
}

static void forget_host(void)
{
	/* What the host sent before it left may still be queued; the next one must not inherit it. */
	while (read(port.fd, input, sizeof input) > 0)
		;
	connected = false;
	pending = false;
	discarding = false;
	input_length = 0;
	output_length = 0;
	identity_abandon();
}

bool control_step(void)
{
	if (!pending)
		return false;
	pending = false;
	flush_output();
	if (input_length < sizeof input) {
		ssize_t got = read(port.fd, input + input_length, sizeof input - input_length);
		if (got > 0) {
			input_length += (size_t)got;
			pending = true;
		}
	}
	handle_input();
	flush_output();
	/* With replies that do not fit, the next edge comes when the host has read some. */
	if (output_length > 0)
		pending = false;
	return pending;
}

static void control_ready(struct source *source, uint32_t events)
{
	(void)source;
	if (events & EPOLLHUP) {
		forget_host();
		return;
	}
	if (!connected) {
		connected = true;
		say_hello();
	}
	pending = true;
}

void control_open(const char *node)
{
	port.fd = open(node, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (port.fd < 0)
		fatal("%s: %s", node, strerror(errno));
	loop_watch(&port);
}
