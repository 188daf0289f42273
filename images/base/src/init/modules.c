#include "init/modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"

static void load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fatal("module %s: %s", path, strerror(errno));
	if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)
		fatal("module %s: %s", path, strerror(errno));
	close(fd);
}

void modules_load(const char *directory)
{
	char path[512], list[8192];
	snprintf(path, sizeof path, "%s/list", directory);
	if (text_read(path, list, sizeof list) < 0)
		return;
	char *rest = list;
	for (char *name; (name = strsep(&rest, "\n")) != NULL;) {
		if (*name == '\0')
			continue;
		snprintf(path, sizeof path, "%s/%s", directory, name);
		load(path);
	}
}
