/*
 * PID 1 of a guest. It makes the system usable, says hello, takes its identity from the host and
 * then serves: sshd on the ports, the lease, the flavour's services. Nothing in the loop blocks.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init/console.h"
#include "init/control.h"
#include "init/identity.h"
#include "init/lease.h"
#include "init/loop.h"
#include "init/modules.h"
#include "init/ports.h"
#include "init/services.h"
#include "init/setup.h"

static int epoll_fd = -1;

void loop_watch(struct source *source)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET,
				     .data = { .ptr = source } };
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, source->fd, &event) != 0)
		fatal("epoll: %s", strerror(errno));
}

void loop_forget(struct source *source)
{
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
}

static void retry(struct source *source, uint32_t events)
{
	uint64_t expirations;
	(void)events;
	if (read(source->fd, &expirations, sizeof expirations) < 0)
		return;
	ports_retry();
	services_retry();
}

static struct source retry_timer = { .fd = -1, .ready = retry };

void loop_retry_in(unsigned milliseconds)
{
	struct itimerspec armed, wanted = {
		.it_value = { milliseconds / 1000, (long)(milliseconds % 1000) * 1000000 },
	};
	/* Never later than somebody else asked for: whoever is early asks again. */
	timerfd_gettime(retry_timer.fd, &armed);
	bool sooner = armed.it_value.tv_sec < wanted.it_value.tv_sec ||
		      (armed.it_value.tv_sec == wanted.it_value.tv_sec &&
		       armed.it_value.tv_nsec < wanted.it_value.tv_nsec);
	bool is_armed = armed.it_value.tv_sec != 0 || armed.it_value.tv_nsec != 0;
	if (!is_armed || !sooner)
		timerfd_settime(retry_timer.fd, 0, &wanted, NULL);
}

static void reap(struct source *source, uint32_t events)
{
	struct signalfd_siginfo information;
	char answer[256];
	int status;
	(void)events;
	while (read(source->fd, &information, sizeof information) > 0)
		;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
		if (identity_child_ended(pid, status, answer, sizeof answer))
			control_send(answer);
		else if (!ports_child_ended(pid))
			services_child_ended(pid);
	}
}

static struct source children = { .fd = -1, .ready = reap };

/* All signals are blocked: children are reaped through a descriptor, the rest means nothing to
 * PID 1 (the kernel drops what init neither handles nor waits for). */
static void open_signals(void)
{
	sigset_t all, child;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	children.fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	retry_timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (children.fd < 0 || retry_timer.fd < 0 || epoll_fd < 0)
		fatal("event loop: %s", strerror(errno));
	loop_watch(&children);
	loop_watch(&retry_timer);
}

static _Noreturn void serve(void)
{
	struct epoll_event ready[16];
	bool busy = false;
	for (;;) {
		int count = epoll_wait(epoll_fd, ready, 16, busy ? 0 : -1);
		for (int i = 0; i < count; i++) {
			struct source *source = ready[i].data.ptr;
			source->ready(source, ready[i].events);
		}
		busy = control_step();
	}
}

int main(void)
{
	char control[64];
	const struct rlimit files = { 1024, 524288 };

	console_attach();
	umask(022);
	open_signals();
	lease_open();
	setup_filesystems();
	setup_cgroups();
	setup_loopback();
	modules_load("/usr/lib/vmrun/modules");
	setup_sysctls();
	setrlimit(RLIMIT_NOFILE, &files);
	services_start();
	ports_open(control, sizeof control);
	/* Under memory pressure the lease must not wait for pages of this program. */
	mlockall(MCL_CURRENT | MCL_FUTURE);
	control_open(control);
	serve();
}
