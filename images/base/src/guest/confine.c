#include "guest/confine.h"

#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest/guest.h"

#define NOBODY_ELSE 64998 /* in no passwd file, and nothing else runs as it */

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the architecture's audit number is not known"
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_##action)
#define UNLESS(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, 1)
#define ALLOW(name) UNLESS(__NR_##name), RETURN(ALLOW)

static void check(long result, const char *what)
{
	if (result < 0)
		fail(EXIT_NETWORK, "%s: %s", what, strerror(errno));
}

static void limit(int resource, rlim_t value)
{
	const struct rlimit both = { value, value };
	check(setrlimit(resource, &both), "set a limit");
}

static void filter_system_calls(void)
{
	static struct sock_filter rules[] = {
		LOAD(arch),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
		RETURN(KILL_PROCESS),
		LOAD(nr),
		ALLOW(read),
		ALLOW(write),
		ALLOW(close),
#ifdef __NR_poll
		ALLOW(poll),
#endif
		ALLOW(ppoll),
		ALLOW(accept4),
		ALLOW(connect),
		ALLOW(shutdown),
		ALLOW(getsockname),
		ALLOW(setsockopt),
		ALLOW(getsockopt),
		ALLOW(recvmsg),
		ALLOW(sendmsg),
		ALLOW(clock_gettime),
		ALLOW(madvise),
		ALLOW(rt_sigreturn),
		ALLOW(restart_syscall),
		ALLOW(exit_group),
		/* Nothing but what connect() needs. */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_socket, 1, 0),
		RETURN(KILL_PROCESS),
		LOAD(args[0]),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 1, 0),
		RETURN(KILL_PROCESS),
		LOAD(args[1]),
		UNLESS(SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC),
		RETURN(ALLOW),
		RETURN(KILL_PROCESS),
	};
	const struct sock_fprog program = { sizeof rules / sizeof rules[0], rules };
	check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "filter system calls");
}

void confine(void)
{
	for (unsigned long capability = 0; capability <= CAP_LAST_CAP; capability++)
		if (prctl(PR_CAPBSET_DROP, capability) != 0 && errno != EINVAL)
			fail(EXIT_NETWORK, "drop capability %lu: %s", capability, strerror(errno));
	limit(RLIMIT_FSIZE, 0);
	limit(RLIMIT_CORE, 0);
	check(setgroups(0, NULL), "drop groups");
	check(setresgid(NOBODY_ELSE, NOBODY_ELSE, NOBODY_ELSE), "change the group");
	check(setresuid(NOBODY_ELSE, NOBODY_ELSE, NOBODY_ELSE), "change the user");
	limit(RLIMIT_NPROC, 0);
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
	filter_system_calls();
}
