#include "init/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/text.h"
#include "init/console.h"
#include "init/lease.h"
#include "init/process.h"

#define SSH "/run/vmrun/ssh"
#define HOST_KEY SSH "/host_key"
#define KEY_TYPE "ssh-ed25519 "
#define KEY_BASE64 68 /* an ed25519 public key, always */
#define ENTROPY_BYTES 64

enum field { NAME = 1, TIME = 2, ENTROPY = 4, CLIENT_KEY = 8, LEASE = 16, ALL = 31 };

static enum { IDLE, COLLECTING, MAKING_KEY, DONE } state;

static struct {
	unsigned fields;
	const char *error;
	char name[64];
	struct timespec time;
	unsigned char entropy[ENTROPY_BYTES];
	char client_key[128];
	uint64_t lease;
} block;

static pid_t keygen;

const char *identity_begin(void)
{
	if (state != IDLE)
		return "already identified";
	explicit_bzero(&block, sizeof block);
	state = COLLECTING;
	return NULL;
}

bool identity_collecting(void)
{
	return state == COLLECTING;
}

void identity_abandon(void)
{
	if (state == COLLECTING)
		state = IDLE;
}

bool identity_done(void)
{
	return state == DONE;
}

/* RFC 1123, one label. */
static bool parse_name(const char *text)
{
	size_t length = strlen(text);
	if (length == 0 || length > 63 || text[0] == '-' || text[length - 1] == '-' ||
	    strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") != length)
		return false;
	memcpy(block.name, text, length + 1);
	return true;
}

static bool parse_time(char *text)
{
	uint64_t seconds, nanoseconds = 0;
	char *fraction = strchr(text, '.');
	if (fraction != NULL) {
		*fraction++ = '\0';
		char digits[10] = "000000000";
		size_t length = strlen(fraction);
		memcpy(digits, fraction, length < 9 ? length : 9);
		if (length == 0 || strspn(fraction, "0123456789") != length ||
		    !text_number(digits, 999999999, &nanoseconds))
			return false;
	}
	if (!text_number(text, INT32_MAX * UINT64_C(4), &seconds))
		return false;
	block.time = (struct timespec){ (time_t)seconds, (long)nanoseconds };
	return true;
}

static bool parse_entropy(const char *text)
{
	static const char digits[] = "0123456789abcdef";
	if (strlen(text) != ENTROPY_BYTES * 2 || strspn(text, digits) != ENTROPY_BYTES * 2)
		return false;
	for (size_t i = 0; i < ENTROPY_BYTES; i++)
		block.entropy[i] = (unsigned char)((strchr(digits, text[2 * i]) - digits) << 4 |
						   (strchr(digits, text[2 * i + 1]) - digits));
	return true;
}

/* An OpenSSH public key line of ed25519, with no options and no comment. */
static bool is_public_key(const char *text)
{
	static const char base64[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	return strncmp(text, KEY_TYPE, strlen(KEY_TYPE)) == 0 &&
	       strspn(text + strlen(KEY_TYPE), base64) == KEY_BASE64 &&
	       text[strlen(KEY_TYPE) + KEY_BASE64] == '\0';
}

static bool parse_client_key(const char *text)
{
	if (!is_public_key(text))
		return false;
	snprintf(block.client_key, sizeof block.client_key, "%s\n", text);
	return true;
}

static bool parse_lease(const char *text)
{
	return text_number(text, LEASE_MAX_SECONDS, &block.lease) && block.lease > 0;
}

static void take(enum field field, bool good, const char *error)
{
	if (block.fields & field)
		block.error = "a field is given twice";
	else if (!good)
		block.error = error;
	block.fields |= field;
}

void identity_line(char *line)
{
	char *value = strchr(line, ' ');
	if (block.error != NULL)
		return;
	if (value == NULL) {
		block.error = "malformed line";
		return;
	}
	*value++ = '\0';
	if (strcmp(line, "name") == 0)
		take(NAME, parse_name(value), "malformed name");
	else if (strcmp(line, "time") == 0)
		take(TIME, parse_time(value), "malformed time");
	else if (strcmp(line, "entropy") == 0)
		take(ENTROPY, parse_entropy(value), "malformed entropy");
	else if (strcmp(line, "client-key") == 0)
		take(CLIENT_KEY, parse_client_key(value), "malformed client-key");
	else if (strcmp(line, "lease") == 0)
		take(LEASE, parse_lease(value), "malformed lease");
	else
		block.error = "unknown field";
}

/* Credits the host's entropy and reseeds at once, so that two guests restored from one save never
 * draw the same bytes from here on. */
static bool stir_entropy(void)
{
	struct {
		struct rand_pool_info info;
		unsigned char bytes[ENTROPY_BYTES];
	} pool = { .info = { .entropy_count = ENTROPY_BYTES * 8, .buf_size = ENTROPY_BYTES } };
	memcpy(pool.info.buf, block.entropy, ENTROPY_BYTES);
	explicit_bzero(block.entropy, ENTROPY_BYTES);
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && ioctl(fd, (int)RNDADDENTROPY, &pool) == 0 &&
		    ioctl(fd, (int)RNDRESEEDCRNG) == 0;
	explicit_bzero(&pool, sizeof pool);
	if (fd >= 0)
		close(fd);
	return good;
}

static bool make_machine_id(void)
{
	unsigned char bytes[16];
	char text[sizeof bytes * 2 + 2];
	if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
		return false;
	for (size_t i = 0; i < sizeof bytes; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	text[sizeof bytes * 2] = '\n';
	text[sizeof bytes * 2 + 1] = '\0';
	return text_create("/run/vmrun/machine-id", text, 0444) == 0;
}

static pid_t start_keygen(void)
{
	char *const arguments[] = { "/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "",
				    "-C", "", "-f", HOST_KEY, NULL };
	return process_start(arguments, -1, "/run/vmrun/log/ssh-keygen");
}

const char *identity_end(void)
{
	state = IDLE;
	if (block.error != NULL)
		return block.error;
	if (block.fields != ALL)
		return "a field is missing";
	if (!stir_entropy())
		fatal("identity: the kernel takes no entropy: %s", strerror(errno));
	keygen = start_keygen();

	char name[sizeof block.name + 1];
	snprintf(name, sizeof name, "%s\n", block.name);
	if (keygen < 0 || clock_settime(CLOCK_REALTIME, &block.time) != 0 ||
	    sethostname(block.name, strlen(block.name)) != 0 || !make_machine_id() ||
	    text_create("/run/vmrun/hostname", name, 0444) != 0 ||
	    text_create(SSH "/authorized_keys", block.client_key, 0400) != 0)
		fatal("identity: %s", strerror(errno));
	lease_renew(block.lease);
	state = MAKING_KEY;
	return NULL;
}

bool identity_child_ended(pid_t pid, int status, char *answer, size_t size)
{
	char key[128];
	if (state != MAKING_KEY || pid != keygen)
		return false;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 ||
	    text_read(HOST_KEY ".pub", key, sizeof key) < 0)
		fatal("identity: ssh-keygen failed with status %#x", (unsigned)status);
	/* ssh-keygen ends the line with an empty comment. */
	key[strcspn(key, " ") + 1 + strcspn(key + strcspn(key, " ") + 1, " ")] = '\0';
	if (!is_public_key(key))
		fatal("identity: ssh-keygen made no ed25519 key");
	snprintf(answer, size, "identified %s\n", key);
	state = DONE;
	return true;
}
