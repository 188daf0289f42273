/* /usr/lib/vmrun/guest: what the host executes inside a guest. */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"

static const struct {
	const char *name;
	int (*run)(int count, char **arguments);
} verbs[] = {
	{ "receive", receive },
	{ "apply", apply },
	{ "gate", gate },
	{ "dial", dial },
	{ "relay", relay },
	{ "attach", attach },
	{ "archive", archive },
	{ "extract", extract },
};

void one_line(char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < ' ' || *text == 127)
			*text = '?';
}

void fail(int status, const char *format, ...)
{
	char line[1024] = "vmrun-guest: ";
	size_t used = strlen(line);
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(line + used, sizeof line - used - 1, format, arguments);
	va_end(arguments);
	one_line(line);
	strcat(line, "\n");
	write_all(STDERR_FILENO, line, strlen(line));
	exit(status);
}

int main(int count, char **arguments)
{
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; count > 1 && i < sizeof verbs / sizeof verbs[0]; i++)
		if (strcmp(arguments[1], verbs[i].name) == 0)
			return verbs[i].run(count - 2, arguments + 2);
	fail(EXIT_USAGE, "usage: guest receive|apply|gate|dial|relay|attach|archive|extract …");
}
