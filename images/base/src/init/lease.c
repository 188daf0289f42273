#include "init/lease.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>

#include "common/text.h"
#include "init/console.h"
#include "init/loop.h"

static void ran_out(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	console_say("the lease ran out; powering off");
	power_off();
}

static struct source lease = { .fd = -1, .ready = ran_out };

void lease_renew(uint64_t seconds)
{
	const struct itimerspec when = { .it_value = { .tv_sec = (time_t)seconds } };
	if (timerfd_settime(lease.fd, 0, &when, NULL) != 0)
		fatal("lease: %s", strerror(errno));
}

static uint64_t first_lease(void)
{
	static const char key[] = "vmrun.lease=";
	char line[4096];
	uint64_t seconds;
	if (text_read("/proc/cmdline", line, sizeof line) < 0)
		fatal("/proc/cmdline: %s", strerror(errno));
	char *rest = line;
	for (char *word; (word = strsep(&rest, " ")) != NULL;)
		if (strncmp(word, key, strlen(key)) == 0 &&
		    text_number(word + strlen(key), LEASE_MAX_SECONDS, &seconds) && seconds > 0)
			return seconds;
	fatal("no usable vmrun.lease on the kernel command line");
}

void lease_open(void)
{
	/* CLOCK_BOOTTIME: setting the guest's clock, which the host does, must not move it. */
	lease.fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (lease.fd < 0)
		fatal("lease: %s", strerror(errno));
	lease_renew(first_lease());
	loop_watch(&lease);
}
