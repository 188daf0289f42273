/*
 * The first process of a container: waits for SIGUSR1, then becomes the workload.
 *
 * While it waits, the host reads from outside what the engine has really set up. The signal is
 * blocked before its handler is there, and unblocked only while waiting, so a sender that sees the
 * handler in /proc/PID/status (SigCgt) knows that the signal will neither kill nor be lost.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_USAGE = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

static volatile sig_atomic_t opened;

static void on_signal(int number)
{
	(void)number;
	opened = 1;
}

int main(int count, char **arguments)
{
	const struct sigaction action = { .sa_handler = on_signal };
	sigset_t signals, before, waiting;
	if (count < 3 || strcmp(arguments[1], "--") != 0) {
		dprintf(STDERR_FILENO, "vmrun-gate: usage: gate -- COMMAND [ARGUMENT…]\n");
		return EXIT_USAGE;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, &before);
	waiting = before;
	sigdelset(&waiting, SIGUSR1);
	sigaction(SIGUSR1, &action, NULL);
	while (!opened)
		sigsuspend(&waiting);
	/* execve puts the handler back to the default by itself. */
	sigprocmask(SIG_SETMASK, &before, NULL);

	execvp(arguments[2], arguments + 2);
	int error = errno;
	dprintf(STDERR_FILENO, "vmrun-gate: %s: %s\n", arguments[2], strerror(error));
	return error == ENOENT || error == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
}
