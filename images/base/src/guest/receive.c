/*
 * receive DIR DIGEST:SIZE…
 *
 * Takes blobs from stdin. The digests come on the command line, that is, over the authenticated
 * channel from the host's own verification; bytes that do not match never get a name.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"
#include "guest/sha256.h"

#define ALGORITHM "sha256:"
#define HEX_DIGITS (SHA256_BYTES * 2)
#define PART ".part"

struct blob {
	char hex[HEX_DIGITS + 1];
	uint64_t size;
};

static struct blob parse_blob(const char *text)
{
	struct blob blob;
	const char *hex = text + strlen(ALGORITHM);
	if (strncmp(text, ALGORITHM, strlen(ALGORITHM)) != 0 ||
	    strspn(hex, "0123456789abcdef") != HEX_DIGITS || hex[HEX_DIGITS] != ':' ||
	    !text_number(hex + HEX_DIGITS + 1, INT64_MAX, &blob.size))
		fail(EXIT_USAGE, "not sha256:HEX:SIZE: %.100s", text);
	memcpy(blob.hex, hex, HEX_DIGITS);
	blob.hex[HEX_DIGITS] = '\0';
	return blob;
}

static _Noreturn void discard(int directory, int status, const char *reason,
			      const struct blob *blob)
{
	unlinkat(directory, PART, 0);
	fail(status, "%s: " ALGORITHM "%s", reason, blob->hex);
}

static void receive_blob(int directory, const struct blob *blob)
{
	static unsigned char buffer[262144];
	struct sha256 hash;
	char hex[HEX_DIGITS + 1];

	unlinkat(directory, PART, 0);
	int fd = openat(directory, PART, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			0400);
	if (fd < 0)
		discard(directory, EXIT_DISK, strerror(errno), blob);
	sha256_start(&hash);
	for (uint64_t left = blob->size; left > 0;) {
		size_t wanted = left < sizeof buffer ? (size_t)left : sizeof buffer;
		ssize_t got = read(STDIN_FILENO, buffer, wanted);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			discard(directory, EXIT_SHORT, "the stream ended early", blob);
		sha256_add(&hash, buffer, (size_t)got);
		if (write_all(fd, buffer, (size_t)got) != 0)
			discard(directory, EXIT_DISK, strerror(errno), blob);
		left -= (uint64_t)got;
	}
	sha256_finish(&hash, hex);
	if (strcmp(hex, blob->hex) != 0)
		discard(directory, EXIT_MISMATCH, "the bytes do not match the digest", blob);
	if (close(fd) != 0 || renameat(directory, PART, directory, blob->hex) != 0)
		discard(directory, EXIT_DISK, strerror(errno), blob);
}

int receive(int count, char **arguments)
{
	if (count < 2)
		fail(EXIT_USAGE, "usage: receive DIR DIGEST:SIZE…");
	/* All arguments are checked before the first byte is read. */
	for (int i = 1; i < count; i++)
		parse_blob(arguments[i]);
	umask(077);
	if (mkdir(arguments[0], 0700) != 0 && errno != EEXIST)
		fail(EXIT_DISK, "%s: %s", arguments[0], strerror(errno));
	int directory = open(arguments[0], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (directory < 0 || fchmod(directory, 0700) != 0)
		fail(EXIT_DISK, "%s: %s", arguments[0], strerror(errno));
	for (int i = 1; i < count; i++) {
		struct blob blob = parse_blob(arguments[i]);
		receive_blob(directory, &blob);
	}
	return EXIT_DONE;
}
