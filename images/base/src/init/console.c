#include "init/console.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "common/text.h"

void console_attach(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0)
		return;
	for (int target = STDIN_FILENO; target <= STDERR_FILENO; target++)
		dup2(fd, target);
	if (fd > STDERR_FILENO)
		close(fd);
}

static void say(const char *prefix, const char *format, va_list arguments)
{
	char line[512];
	int used = snprintf(line, sizeof line, "%s", prefix);
	vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
	size_t length = 0;
	while (line[length] != '\0')
		length++;
	line[length++] = '\n';
	write_all(STDERR_FILENO, line, length);
}

void console_say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	say("vmrun-init: ", format, arguments);
	va_end(arguments);
}

void fatal(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	say("vmrun-init: fatal: ", format, arguments);
	va_end(arguments);
	power_off();
}

void power_off(void)
{
	kill(-1, SIGKILL);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
