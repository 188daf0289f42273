#include "init/verity.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"

#define BLOCK_SIZE 4096
#define SECTORS_PER_BLOCK (BLOCK_SIZE / 512)
#define NAME "root"

/* One ioctl's buffer: the header, then a target and its parameters. */
struct request {
	struct dm_ioctl header;
	struct dm_target_spec target;
	char parameters[1024];
};

static void prepare(struct request *request, uint32_t flags)
{
	memset(request, 0, sizeof *request);
	request->header.version[0] = DM_VERSION_MAJOR;
	request->header.data_size = sizeof *request;
	request->header.data_start = offsetof(struct request, target);
	request->header.flags = flags;
	snprintf(request->header.name, sizeof request->header.name, NAME);
}

static void control(int fd, unsigned long command, struct request *request, const char *what)
{
	if (ioctl(fd, (int)command, request) != 0)
		fatal("dm-verity: %s: %s", what, strerror(errno));
}

void verity_open(const char *device, const char *parameters)
{
	char copy[512];
	snprintf(copy, sizeof copy, "%s", parameters);
	char *rest = copy;
	const char *hash = strsep(&rest, ":");
	const char *salt = strsep(&rest, ":");
	const char *blocks_text = strsep(&rest, ":");
	const char *start_text = rest;
	uint64_t blocks, start;
	if (start_text == NULL || strlen(hash) != 64 || *salt == '\0' ||
	    !text_number(blocks_text, UINT32_MAX, &blocks) || blocks == 0 ||
	    !text_number(start_text, UINT32_MAX, &start))
		fatal("vmrun.verity is not ROOTHASH:SALT:DATA_BLOCKS:HASH_START");

	int fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fatal("/dev/mapper/control: %s", strerror(errno));
	struct request request;

	prepare(&request, DM_READONLY_FLAG);
	control(fd, DM_DEV_CREATE, &request, "create");

	prepare(&request, DM_READONLY_FLAG);
	request.header.target_count = 1;
	request.target.length = blocks * SECTORS_PER_BLOCK;
	snprintf(request.target.target_type, sizeof request.target.target_type, "verity");
	snprintf(request.parameters, sizeof request.parameters,
		 "1 %s %s %d %d %" PRIu64 " %" PRIu64 " sha256 %s %s 1 panic_on_corruption", device,
		 device, BLOCK_SIZE, BLOCK_SIZE, blocks, start, hash, salt);
	control(fd, DM_TABLE_LOAD, &request, "table");

	/* DM_DEV_SUSPEND without DM_SUSPEND_FLAG resumes, that is, activates the table. */
	prepare(&request, 0);
	control(fd, DM_DEV_SUSPEND, &request, "activate");
	close(fd);
}
