/* The initrd's /init: from the kernel's hand to the supervising init on the verified root. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"
#include "init/modules.h"
#include "init/verity.h"

#define DISK "/dev/vda"
#define ROOT "/root"
#define NEXT "/usr/lib/vmrun/init"

static void mount_or_die(const char *type, const char *target, unsigned long flags,
			 const char *options)
{
	mkdir(target, 0755);
	if (mount(type, target, type, flags, options) != 0)
		fatal("mount %s: %s", target, strerror(errno));
}

/* The value of key on the kernel command line, or NULL. */
static const char *command_line(const char *key)
{
	static char line[4096];
	if (text_read("/proc/cmdline", line, sizeof line) < 0)
		fatal("/proc/cmdline: %s", strerror(errno));
	char *rest = line;
	size_t length = strlen(key);
	for (char *word; (word = strsep(&rest, " ")) != NULL;)
		if (strncmp(word, key, length) == 0 && word[length] == '=')
			return word + length + 1;
	return NULL;
}

/* virtio_blk probes when its module is loaded, but the node may follow a little later. */
static void wait_for(const char *path)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	for (int tries = 0; access(path, F_OK) != 0; tries++) {
		if (tries == 10000)
			fatal("%s did not appear", path);
		nanosleep(&pause, NULL);
	}
}

/* Frees the memory of the initramfs: its files would otherwise live as long as the guest. */
static void free_initramfs(void)
{
	DIR *modules = opendir("/modules");
	if (modules != NULL) {
		for (struct dirent *entry; (entry = readdir(modules)) != NULL;)
			unlinkat(dirfd(modules), entry->d_name, 0);
		closedir(modules);
	}
	unlink("/init");
}

static void switch_root(void)
{
	static const char *const moved[] = { "/dev", "/proc", "/sys" };
	for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++) {
		char target[64];
		snprintf(target, sizeof target, ROOT "%s", moved[i]);
		if (mount(moved[i], target, NULL, MS_MOVE, NULL) != 0)
			fatal("move %s: %s", moved[i], strerror(errno));
	}
	free_initramfs();
	if (chdir(ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 ||
	    chdir("/") != 0)
		fatal("switch root: %s", strerror(errno));
}

int main(void)
{
	const unsigned long locked = MS_NOSUID | MS_NOEXEC;
	mount_or_die("devtmpfs", "/dev", locked, "mode=0755");
	console_attach();
	mount_or_die("proc", "/proc", locked | MS_NODEV, NULL);
	mount_or_die("sysfs", "/sys", locked | MS_NODEV, NULL);

	const char *verity = command_line("vmrun.verity");
	if (verity == NULL)
		fatal("no vmrun.verity on the kernel command line");
	modules_load("/modules");
	wait_for(DISK);
	verity_open(DISK, verity);
	wait_for("/dev/dm-0");
	mkdir(ROOT, 0755);
	if (mount("/dev/dm-0", ROOT, "erofs", MS_RDONLY | MS_NODEV, NULL) != 0)
		fatal("mount the root: %s", strerror(errno));
	switch_root();

	char *const arguments[] = { NEXT, NULL };
	char *const environment[] = { "PATH=/usr/sbin:/usr/bin", "HOME=/root", NULL };
	execve(NEXT, arguments, environment);
	fatal("%s: %s", NEXT, strerror(errno));
}
