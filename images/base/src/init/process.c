#include "init/process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "init/console.h"

static _Noreturn void become(char *const arguments[], int input, const char *log)
{
	char *const environment[] = { "PATH=/usr/sbin:/usr/bin", "HOME=/root", "USER=root", NULL };
	sigset_t none;

	setsid();
	int errors = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (errors < 0)
		_exit(127);
	int in = input >= 0 ? input : open("/dev/null", O_RDONLY | O_CLOEXEC);
	dup2(in, STDIN_FILENO);
	dup2(input >= 0 ? input : errors, STDOUT_FILENO);
	dup2(errors, STDERR_FILENO);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(arguments[0], arguments, environment);
	_exit(127);
}

pid_t process_start(char *const arguments[], int input, const char *log)
{
	pid_t pid = fork();
	if (pid == 0)
		become(arguments, input, log);
	if (pid < 0)
		console_say("cannot start %s", arguments[0]);
	return pid;
}
