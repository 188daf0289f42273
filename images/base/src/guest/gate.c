/*
 * gate PIDFILE|PID CGROUP [memory=BYTES] [pids=N] [cpu=QUOTA:PERIOD]
 *
 * Prepares CGROUP for the engine, waits until the container's first process is the gate and cannot
 * miss its signal, prints what the kernel says of it, and lets it go when the host agrees.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"

#define POLL_MS 4
#define PATH_SIZE 768

static const char *const limit_files[] = {
	"memory.max", "memory.swap.max", "pids.max", "cpu.max",
};

static pid_t pid;
static int pidfd = -1;

/* Ends the container's first process, and so the container, before its command has run. */
static _Noreturn void refuse(const char *reason)
{
	if (pidfd >= 0)
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	fail(EXIT_NOT_OPENED, "not opened: %s", reason);
}

/* --- the cgroup ------------------------------------------------------------------------------ */

static void set_limit(const char *cgroup, const char *file, const char *value)
{
	char path[PATH_SIZE];
	snprintf(path, sizeof path, CGROUP_ROOT "%s/%s", cgroup, file);
	if (text_write(path, value) != 0)
		fail(EXIT_DISK, "%s: %s", path, strerror(errno));
}

/* Controllers of the children, so that the engine's cgroup below has all of them. */
static void enable_controllers(const char *cgroup)
{
	static const char *const controllers[] = { "+cpu", "+memory", "+pids" };
	for (size_t i = 0; i < sizeof controllers / sizeof controllers[0]; i++)
		set_limit(cgroup, "cgroup.subtree_control", controllers[i]);
}

static void check_cgroup(const char *cgroup)
{
	if (cgroup[0] != '/' || cgroup[1] == '\0' || strlen(cgroup) > 400 ||
	    strstr(cgroup, "..") != NULL || strstr(cgroup, "//") != NULL ||
	    cgroup[strlen(cgroup) - 1] == '/')
		fail(EXIT_USAGE, "not an absolute path of a cgroup: %.100s", cgroup);
}

static void make_cgroup(const char *cgroup)
{
	char prefix[512] = "", path[PATH_SIZE];
	for (size_t length = 0; cgroup[length] != '\0';) {
		enable_controllers(prefix);
		length += 1 + strcspn(cgroup + length + 1, "/");
		memcpy(prefix, cgroup, length);
		prefix[length] = '\0';
		snprintf(path, sizeof path, CGROUP_ROOT "%s", prefix);
		if (mkdir(path, 0755) != 0 && errno != EEXIST)
			fail(EXIT_DISK, "%s: %s", path, strerror(errno));
	}
	enable_controllers(cgroup);
}

static void apply_limit(const char *cgroup, const char *argument)
{
	uint64_t value, period;
	char text[64];
	const char *equals = strchr(argument, '=');
	if (equals == NULL)
		fail(EXIT_USAGE, "not a limit: %.100s", argument);
	if (strncmp(argument, "memory=", 7) == 0 && text_number(equals + 1, INT64_MAX, &value)) {
		set_limit(cgroup, "memory.max", equals + 1);
		set_limit(cgroup, "memory.swap.max", "0");
		set_limit(cgroup, "memory.oom.group", "0");
	} else if (strncmp(argument, "pids=", 5) == 0 &&
		   text_number(equals + 1, INT32_MAX, &value)) {
		set_limit(cgroup, "pids.max", equals + 1);
	} else if (strncmp(argument, "cpu=", 4) == 0 &&
		   sscanf(equals + 1, "%" SCNu64 ":%" SCNu64, &value, &period) == 2) {
		snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64, value, period);
		set_limit(cgroup, "cpu.max", text);
	} else {
		fail(EXIT_USAGE, "not a limit: %.100s", argument);
	}
}

/* --- waiting for the gate -------------------------------------------------------------------- */

/* The pid in source, which is a number or the path of a pid file that may not be there yet. */
static bool find_pid(const char *source)
{
	char text[32];
	uint64_t value;
	if (isdigit((unsigned char)source[0]))
		snprintf(text, sizeof text, "%s", source);
	else if (text_read(source, text, sizeof text) <= 0)
		return false;
	if (!text_number(text, INT32_MAX, &value) || value < 2)
		return false;
	pid = (pid_t)value;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		fail(EXIT_NOT_OPENED, "process %d: %s", pid, strerror(errno));
	return true;
}

static ssize_t read_proc(const char *file, char *text, size_t size)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	return text_read(path, text, size);
}

/* The value of a line "Key:\tvalue" in /proc/PID/status, tabs as spaces; NULL if there is none. */
static char *status_value(char *status, const char *key, char *value, size_t size)
{
	size_t length = strlen(key);
	for (char *line = status; line != NULL; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, length) != 0 || line[length] != ':')
			continue;
		line += length + 1;
		line += strspn(line, " \t");
		snprintf(value, size, "%.*s", (int)strcspn(line, "\n"), line);
		for (char *tab = value; (tab = strchr(tab, '\t')) != NULL;)
			*tab = ' ';
		return value;
	}
	return NULL;
}

/* The file it executes is the gate, whatever the path inside the container, and its handler for
 * SIGUSR1 is there, so that the signal will neither be lost nor kill it. */
static bool at_gate(void)
{
	char path[64], status[8192], caught[32];
	struct stat running, gate_file;
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	if (stat(path, &running) != 0 || stat(GATE_PATH, &gate_file) != 0 ||
	    running.st_dev != gate_file.st_dev || running.st_ino != gate_file.st_ino)
		return false;
	return read_proc("status", status, sizeof status) > 0 &&
	       status_value(status, "SigCgt", caught, sizeof caught) != NULL &&
	       (strtoull(caught, NULL, 16) >> (SIGUSR1 - 1) & 1) != 0;
}

static void wait_for_gate(const char *source)
{
	struct pollfd watched[2] = { { .fd = STDIN_FILENO, .events = POLLIN } };
	for (;;) {
		if (pidfd < 0)
			find_pid(source);
		if (pidfd >= 0 && at_gate())
			return;
		watched[1] = (struct pollfd){ .fd = pidfd, .events = POLLIN };
		if (poll(watched, 2, POLL_MS) <= 0)
			continue;
		if (watched[1].revents != 0)
			fail(EXIT_NOT_OPENED, "the process ended before it reached the gate");
		refuse("the host gave up before the gate was reached");
	}
}

/* --- what is printed ------------------------------------------------------------------------- */

static void print_status(void)
{
	static const char *const keys[] = {
		"Uid",	  "Gid",    "Groups",	  "CapInh",  "CapPrm",		"CapEff",
		"CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
	};
	char status[8192], value[2048];
	if (read_proc("status", status, sizeof status) <= 0)
		refuse("its status cannot be read");
	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
		if (status_value(status, keys[i], value, sizeof value) != NULL)
			printf("status.%s %s\n", keys[i], value);
}

static bool is_read_only(const char *options)
{
	return strncmp(options, "ro", 2) == 0 && (options[2] == ',' || options[2] == '\0');
}

/* A mount is read-only if it or its file system is. */
static void print_mount(char *line)
{
	char *save, *words[6], *mount_point, *options, *type, *super;
	char *separator = strstr(line, " - ");
	if (separator == NULL)
		return;
	*separator = '\0';
	words[0] = strtok_r(line, " ", &save);
	for (int i = 1; i < 6; i++)
		words[i] = strtok_r(NULL, " ", &save);
	mount_point = words[4];
	options = words[5];
	type = strtok_r(separator + 3, " ", &save);
	strtok_r(NULL, " ", &save);
	super = strtok_r(NULL, " ", &save);
	if (options == NULL || type == NULL)
		return;
	bool read_only = is_read_only(options) || (super != NULL && is_read_only(super));
	const char *rest = strchr(options, ',');
	if (strcmp(mount_point, "/") == 0)
		printf("root %s\n", read_only ? "ro" : "rw");
	printf("mount %s %s %s%s\n", mount_point, type, read_only ? "ro" : "rw",
	       rest == NULL ? "" : rest);
}

static void print_mounts(void)
{
	char path[64], *line = NULL;
	size_t size = 0;
	snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		refuse("its mounts cannot be read");
	for (ssize_t length; (length = getline(&line, &size, file)) > 0;) {
		line[length - (line[length - 1] == '\n')] = '\0';
		print_mount(line);
	}
	free(line);
	fclose(file);
}

static void print_namespaces(void)
{
	static const char *const kinds[] = { "cgroup", "ipc", "mnt", "net", "pid", "uts", "user" };
	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
		char path[64];
		struct stat its, ours;
		snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, kinds[i]);
		if (stat(path, &its) != 0)
			refuse("its namespaces cannot be read");
		snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
		if (stat(path, &ours) != 0)
			refuse("the guest's namespaces cannot be read");
		printf("ns %s %s\n", kinds[i], its.st_ino == ours.st_ino ? "shared" : "private");
	}
}

static void print_rlimit(void)
{
	char limits[4096], soft[32], hard[32];
	if (read_proc("limits", limits, sizeof limits) <= 0)
		refuse("its limits cannot be read");
	const char *line = strstr(limits, "Max open files");
	if (line != NULL && sscanf(line, "Max open files %31s %31s", soft, hard) == 2)
		printf("rlimit nofile %s %s\n", soft, hard);
}

/* The path of the process's cgroup, from "0::/path". */
static void own_cgroup(char *path, size_t size)
{
	char text[1024];
	if (read_proc("cgroup", text, sizeof text) <= 0)
		refuse("its cgroup cannot be read");
	const char *line = strstr(text, "0::");
	snprintf(path, size, "%.*s", line == NULL ? 0 : (int)strcspn(line + 3, "\n"),
		 line == NULL ? "" : line + 3);
}

static void print_limits(const char *cgroup)
{
	char path[1280], value[128];
	for (size_t i = 0; i < sizeof limit_files / sizeof limit_files[0]; i++) {
		snprintf(path, sizeof path, CGROUP_ROOT "%s/%s", cgroup, limit_files[i]);
		if (text_read(path, value, sizeof value) > 0)
			printf("cgroup.%s %s\n", limit_files[i], value);
	}
}

static void end_block(void)
{
	printf("\n");
	if (fflush(stdout) != 0)
		refuse("the host does not listen");
}

static void print_confinement(const char *limited)
{
	char cgroup[512];
	printf("pid %d\n", pid);
	print_status();
	print_mounts();
	print_namespaces();
	print_rlimit();
	own_cgroup(cgroup, sizeof cgroup);
	printf("cgroup %s\n", cgroup);
	print_limits(limited != NULL ? limited : cgroup);
	end_block();
}

/* One number of CGROUP: a file's whole content, or of one of its lines "key value". */
static void print_usage(const char *cgroup, const char *name, const char *file, const char *key)
{
	char path[PATH_SIZE], text[2048];
	uint64_t value;
	snprintf(path, sizeof path, CGROUP_ROOT "%s/%s", cgroup, file);
	if (text_read(path, text, sizeof text) <= 0)
		return;
	char *rest = text;
	for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
		size_t length = key == NULL ? 0 : strlen(key);
		if (key != NULL && (strncmp(line, key, length) != 0 || line[length++] != ' '))
			continue;
		if (text_number(line + length, INT64_MAX, &value))
			printf("cgroup.%s %" PRIu64 "\n", name, value);
	}
}

/* --- the verb -------------------------------------------------------------------------------- */

static void wait_for_word(void)
{
	char word[16];
	size_t length = 0;
	while (length < sizeof word) {
		ssize_t got = read(STDIN_FILENO, word + length, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			refuse("the host went away");
		if (word[length++] == '\n')
			break;
	}
	if (length != 5 || memcmp(word, "open\n", 5) != 0)
		refuse("the host said no");
}

int gate(int count, char **arguments)
{
	if (count < 2)
		fail(EXIT_USAGE, "usage: gate PIDFILE|PID CGROUP [memory=BYTES] [pids=N] "
				 "[cpu=QUOTA:PERIOD]");
	const char *cgroup = arguments[1];
	/* Hanging up shows as the end of stdin, and then the process must be killed first. */
	signal(SIGHUP, SIG_IGN);
	check_cgroup(cgroup);
	make_cgroup(cgroup);
	for (int i = 2; i < count; i++)
		apply_limit(cgroup, arguments[i]);

	wait_for_gate(arguments[0]);
	print_confinement(count > 2 ? cgroup : NULL);
	wait_for_word();
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGUSR1, NULL, 0) != 0)
		fail(EXIT_NOT_OPENED, "the process ended at the gate");

	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	while (poll(&ended, 1, -1) < 0 && errno == EINTR)
		;
	printf("exited\n");
	print_usage(cgroup, "memory.peak", "memory.peak", NULL);
	print_usage(cgroup, "memory.oom_kill", "memory.events", "oom_kill");
	print_usage(cgroup, "pids.peak", "pids.peak", NULL);
	print_usage(cgroup, "pids.refused", "pids.events", "max");
	print_usage(cgroup, "cpu.usage_usec", "cpu.stat", "usage_usec");
	printf("\n");
	fflush(stdout);
	return EXIT_DONE;
}
