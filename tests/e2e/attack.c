/* What an attacker inside a container tries first. Prints one line an attempt: its name, then
 * "refused ERRNO", "SUCCEEDED" or "killed SIGNAL". Each attempt runs in a child of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static int open_write(const char *path)
{
	return open(path, O_WRONLY);
}

static int create(void) { return open("/new", O_WRONLY | O_CREAT, 0600); }
static int write_core_pattern(void) { return open_write("/proc/sys/kernel/core_pattern"); }
static int write_sysrq(void) { return open_write("/proc/sysrq-trigger"); }
static int open_mem(void) { return mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1)); }
static int mount_tmpfs(void) { return mount("none", "/tmp", "tmpfs", 0, NULL); }
static int remount_root(void) { return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL); }
static int unmount_proc(void) { return umount2("/proc", MNT_DETACH); }
static int new_user_namespace(void) { return unshare(CLONE_NEWUSER); }
static int new_mount_namespace(void) { return unshare(CLONE_NEWNS); }
static int raw_socket(void) { return socket(AF_INET, SOCK_RAW, 1); }
static int packet_socket(void) { return socket(AF_PACKET, SOCK_RAW, 0x300); }
static int vsock_socket(void) { return socket(AF_VSOCK, SOCK_STREAM, 0); }
static int alg_socket(void) { return socket(AF_ALG, SOCK_SEQPACKET, 0); }
static int become_root(void) { return setuid(0) < 0 ? -1 : setgid(0); }
static int trace_parent(void) { return (int)ptrace(PTRACE_ATTACH, getppid(), NULL, NULL); }
static int load_program(void) { char a[128] = {0}; return (int)syscall(SYS_bpf, 5, a, sizeof a); }
static int io_uring(void) { char p[120] = {0}; return (int)syscall(SYS_io_uring_setup, 1, p); }
static int key(void) { return (int)syscall(SYS_keyctl, 0, -3, 1); }
static int perf(void) { char a[128] = {0}; return (int)syscall(SYS_perf_event_open, a, 0, -1, -1, 0); }
static int faults(void) { return (int)syscall(SYS_userfaultfd, 0); }
static int module(void) { return (int)syscall(SYS_init_module, "", 0, ""); }
static int kexec(void) { return (int)syscall(SYS_kexec_load, 0, 0, NULL, 0); }
static int restart(void) { return reboot(RB_AUTOBOOT); }
static int handle(void) { char h[8] = {0}; return (int)syscall(SYS_open_by_handle_at, 3, h, 0); }
static int clone_namespaces(void) { return (int)syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0); }
static int set_clock(void) { long t[2] = {1, 0}; return (int)syscall(SYS_clock_settime, 0, t); }
static int change_root(void) { return chroot("/tmp"); }
static int read_kcore(void)
{
	char byte;
	int fd = open("/proc/kcore", O_RDONLY);
	if (fd < 0)
		return -1;
	if (read(fd, &byte, 1) == 1)
		return 0;
	errno = ENODATA;
	return -1;
}
static int run_from_tmp(void)
{
	char buffer[65536];
	ssize_t got;
	int in = open("/proc/self/exe", O_RDONLY), out = open("/tmp/x", O_WRONLY | O_CREAT, 0755);
	if (in < 0 || out < 0)
		return -1;
	while ((got = read(in, buffer, sizeof buffer)) > 0)
		if (write(out, buffer, (size_t)got) != got)
			return -1;
	close(out);
	return execl("/tmp/x", "x", "whoami", NULL);
}
static int old_abi(void)
{
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
	return result > 0 ? 0 : (errno = -result, -1);
}

static const struct { const char *name; int (*attempt)(void); } attempts[] = {
	{"create-in-root", create}, {"write-core-pattern", write_core_pattern},
	{"write-sysrq", write_sysrq}, {"make-device", open_mem}, {"mount", mount_tmpfs},
	{"remount-root", remount_root}, {"unmount", unmount_proc},
	{"user-namespace", new_user_namespace}, {"mount-namespace", new_mount_namespace},
	{"clone-namespace", clone_namespaces}, {"raw-socket", raw_socket},
	{"packet-socket", packet_socket}, {"vsock", vsock_socket}, {"af-alg", alg_socket},
	{"setuid-0", become_root}, {"ptrace", trace_parent}, {"bpf", load_program},
	{"io-uring", io_uring}, {"keyctl", key}, {"perf", perf}, {"userfaultfd", faults},
	{"init-module", module}, {"kexec", kexec}, {"reboot", restart},
	{"open-by-handle", handle}, {"set-clock", set_clock}, {"chroot", change_root},
	{"read-kcore", read_kcore}, {"exec-from-tmp", run_from_tmp}, {"old-abi", old_abi},
};

int main(int count, char **arguments)
{
	if (count > 1 && strcmp(arguments[1], "whoami") == 0)
		return 0;
	if (access("/.vmrun-gate", F_OK) != 0) {
		fputs("attack: not in a vmrun container; this would attack your own system\n", stderr);
		return 2;
	}
	printf("ids %d %d %d %d\n", getuid(), geteuid(), getgid(), getegid());
	fflush(stdout);
	for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
		int status;
		pid_t child = fork();
		if (child == 0) {
			errno = 0;
			_exit(attempts[i].attempt() < 0 ? (errno ? errno : 255) : 0);
		}
		if (child < 0 || waitpid(child, &status, 0) < 0) {
			printf("%s broken\n", attempts[i].name);
			continue;
		}
		if (WIFSIGNALED(status))
			printf("%s killed %d\n", attempts[i].name, WTERMSIG(status));
		else if (WEXITSTATUS(status) == 0)
			printf("%s SUCCEEDED\n", attempts[i].name);
		else
			printf("%s refused %s\n", attempts[i].name, strerrorname_np(WEXITSTATUS(status)));
		fflush(stdout);
	}
	return 0;
}
