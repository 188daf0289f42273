#include "guest/tar.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "guest/guest.h"

#define BLOCK 512
#define EXTENSION_MAX 1048576 /* one pax header or GNU long name */
#define ENTRIES_MAX 2000000
#define ID_MAX UINT64_C(0xfffffffe)

/* The layout POSIX gives a header block (pax(1), "ustar Interchange Format"). */
struct header {
	char name[100];
	char mode[8];
	char uid[8];
	char gid[8];
	char size[12];
	char mtime[12];
	char checksum[8];
	char type;
	char link[100];
	char magic[6];
	char version[2];
	char user[32];
	char group[32];
	char device_major[8];
	char device_minor[8];
	char prefix[155];
	char padding[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a header is one block");

/* What extension headers say of the entry that follows them. */
static struct {
	bool path, link, size, uid, gid, mtime;
	struct tar_entry value;
} extended;

static unsigned char input[131072];
static size_t input_start, input_end;
static uint64_t data_left;
static unsigned padding_left;
static uint64_t entries;

static bool fill(void)
{
	input_start = 0;
	input_end = 0;
	for (;;) {
		ssize_t got = read(STDIN_FILENO, input, sizeof input);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		input_end = (size_t)got;
		return true;
	}
}

/* Up to size bytes of the stream; NULL buffer skips. */
static size_t take(void *buffer, size_t size)
{
	if (input_start == input_end && !fill())
		fail(EXIT_SHORT, "the archive ends early");
	size_t count = input_end - input_start < size ? input_end - input_start : size;
	if (buffer != NULL)
		memcpy(buffer, input + input_start, count);
	input_start += count;
	return count;
}

static void take_all(void *buffer, uint64_t size)
{
	unsigned char *to = buffer;
	while (size > 0) {
		size_t count = take(to, size < sizeof input ? (size_t)size : sizeof input);
		size -= count;
		if (to != NULL)
			to += count;
	}
}

size_t tar_data(void *buffer, size_t size)
{
	if (data_left == 0)
		return 0;
	size_t count = take(buffer, data_left < size ? (size_t)data_left : size);
	data_left -= count;
	return count;
}

void tar_drain(void)
{
	while (fill())
		;
}

static void expect_data(uint64_t size)
{
	data_left = size;
	padding_left = (unsigned)(-size % BLOCK);
}

static void skip_data(void)
{
	take_all(NULL, data_left);
	take_all(NULL, padding_left);
	expect_data(0);
}

/* Octal digits, or GNU's big-endian binary when the first bit is set. */
static uint64_t number(const char *field, size_t size, uint64_t max, const char *what)
{
	uint64_t value = 0;
	size_t i = 0;
	if ((unsigned char)field[0] == 0x80) {
		for (i = 1; i < size; i++) {
			if (value >> 55)
				fail(EXIT_REFUSED, "%s is out of range", what);
			value = value << 8 | (unsigned char)field[i];
		}
	} else {
		while (i < size && field[i] == ' ')
			i++;
		for (; i < size && field[i] >= '0' && field[i] <= '7'; i++)
			value = value << 3 | (uint64_t)(field[i] - '0');
		if (i < size && field[i] != ' ' && field[i] != '\0')
			fail(EXIT_REFUSED, "%s is not a number", what);
	}
	if (value > max)
		fail(EXIT_REFUSED, "%s is out of range", what);
	return value;
}

static void check_sum(const struct header *header)
{
	const unsigned char *bytes = (const unsigned char *)header;
	const size_t start = offsetof(struct header, checksum);
	uint64_t sum = 0;
	for (size_t i = 0; i < BLOCK; i++)
		sum += i >= start && i < start + sizeof header->checksum ? ' ' : bytes[i];
	if (number(header->checksum, sizeof header->checksum, UINT32_MAX, "checksum") != sum)
		fail(EXIT_REFUSED, "a header's checksum is wrong");
}

static void set_path(char *to, const char *from, size_t length)
{
	if (length >= TAR_PATH_MAX)
		fail(EXIT_REFUSED, "a path is longer than %d bytes", TAR_PATH_MAX - 1);
	if (memchr(from, '\0', length) != NULL)
		fail(EXIT_REFUSED, "a path contains NUL");
	memcpy(to, from, length);
	to[length] = '\0';
}

/* "1700000000.25"; times before 1970 become 1970. */
static struct timespec parse_time(const char *text)
{
	struct timespec time = { 0 };
	uint64_t seconds = 0;
	if (*text == '-')
		return time;
	for (; *text >= '0' && *text <= '9'; text++) {
		seconds = seconds * 10 + (uint64_t)(*text - '0');
		if (seconds > UINT64_C(1) << 40)
			fail(EXIT_REFUSED, "mtime is out of range");
	}
	time.tv_sec = (time_t)seconds;
	if (*text == '.')
		for (long unit = 100000000; *++text >= '0' && *text <= '9'; unit /= 10)
			time.tv_nsec += (*text - '0') * unit;
	if (*text != '\0')
		fail(EXIT_REFUSED, "mtime is not a number");
	return time;
}

static uint64_t decimal(const char *text, uint64_t max, const char *what)
{
	uint64_t value = 0;
	const char *digit = text;
	for (; *digit >= '0' && *digit <= '9' && value <= max / 10; digit++)
		value = value * 10 + (uint64_t)(*digit - '0');
	if (digit == text || *digit != '\0' || value > max)
		fail(EXIT_REFUSED, "pax %s is not a usable number", what);
	return value;
}

static void pax_record(const char *key, const char *value, size_t length)
{
	struct tar_entry *entry = &extended.value;
	if (strcmp(key, "path") == 0) {
		set_path(entry->path, value, length);
		extended.path = true;
	} else if (strcmp(key, "linkpath") == 0) {
		set_path(entry->link, value, length);
		extended.link = true;
	} else if (strcmp(key, "size") == 0) {
		entry->size = decimal(value, INT64_MAX, key);
		extended.size = true;
	} else if (strcmp(key, "uid") == 0) {
		entry->uid = (uid_t)decimal(value, ID_MAX, key);
		extended.uid = true;
	} else if (strcmp(key, "gid") == 0) {
		entry->gid = (gid_t)decimal(value, ID_MAX, key);
		extended.gid = true;
	} else if (strcmp(key, "mtime") == 0) {
		entry->mtime = parse_time(value);
		extended.mtime = true;
	} else if (strncmp(key, "GNU.sparse.", 11) == 0) {
		fail(EXIT_REFUSED, "sparse files are not supported");
	}
}

/* Records are "LENGTH KEY=VALUE\n", LENGTH counting the whole record. */
static void parse_pax(char *text, size_t size)
{
	while (size > 0) {
		size_t length = 0, digits = 0;
		while (digits < size && digits < 8 && text[digits] >= '0' && text[digits] <= '9')
			length = length * 10 + (size_t)(text[digits++] - '0');
		if (digits == 0 || length > size || length < digits + 4 || text[digits] != ' ' ||
		    text[length - 1] != '\n')
			fail(EXIT_REFUSED, "a pax header is malformed");
		char *key = text + digits + 1;
		char *equals = memchr(key, '=', length - digits - 2);
		if (equals == NULL)
			fail(EXIT_REFUSED, "a pax header is malformed");
		*equals = '\0';
		text[length - 1] = '\0';
		pax_record(key, equals + 1, (size_t)(text + length - 1 - (equals + 1)));
		text += length;
		size -= length;
	}
}

static void read_extension(char type, uint64_t size)
{
	static char text[EXTENSION_MAX + 1];
	if (size > EXTENSION_MAX)
		fail(EXIT_REFUSED, "an extension header is larger than %d bytes", EXTENSION_MAX);
	expect_data(size);
	take_all(text, size);
	data_left = 0;
	skip_data();
	text[size] = '\0';
	if (type == 'x') {
		parse_pax(text, (size_t)size);
	} else if (type == 'L') {
		set_path(extended.value.path, text, strlen(text));
		extended.path = true;
	} else if (type == 'K') {
		set_path(extended.value.link, text, strlen(text));
		extended.link = true;
	}
}

static void header_path(char *to, const struct header *header)
{
	size_t length = 0, name = strnlen(header->name, sizeof header->name);
	/* GNU tar uses the prefix's place for other things, and a magic of its own. */
	if (memcmp(header->magic, "ustar\0", 6) == 0 && header->prefix[0] != '\0') {
		length = strnlen(header->prefix, sizeof header->prefix);
		memcpy(to, header->prefix, length);
		to[length++] = '/';
	}
	memcpy(to + length, header->name, name);
	to[length + name] = '\0';
}

static enum tar_kind kind_of(const struct header *header, const char *path)
{
	size_t length = strlen(path);
	switch (header->type) {
	case '\0':
	case '0':
	case '7':
		/* Before there was a type for directories, a slash told. */
		return length > 0 && path[length - 1] == '/' ? TAR_DIRECTORY : TAR_FILE;
	case '1':
		return TAR_HARDLINK;
	case '2':
		return TAR_SYMLINK;
	case '5':
		return TAR_DIRECTORY;
	case '3':
	case '4':
		fail(EXIT_REFUSED, "device node: %.200s", path);
	case '6':
		fail(EXIT_REFUSED, "FIFO: %.200s", path);
	default:
		fail(EXIT_REFUSED, "entry of unknown type %d: %.200s", header->type, path);
	}
}

static void describe(struct tar_entry *entry, const struct header *header, uint64_t size)
{
	const struct tar_entry *value = &extended.value;
	if (extended.path)
		memcpy(entry->path, value->path, sizeof entry->path);
	else
		header_path(entry->path, header);
	if (extended.link)
		memcpy(entry->link, value->link, sizeof entry->link);
	else
		set_path(entry->link, header->link, strnlen(header->link, sizeof header->link));
	entry->kind = kind_of(header, entry->path);
	entry->mode = (mode_t)number(header->mode, sizeof header->mode, UINT32_MAX, "mode") & 07777;
	entry->uid = extended.uid ? value->uid :
				    (uid_t)number(header->uid, sizeof header->uid, ID_MAX, "uid");
	entry->gid = extended.gid ? value->gid :
				    (gid_t)number(header->gid, sizeof header->gid, ID_MAX, "gid");
	if (extended.mtime)
		entry->mtime = value->mtime;
	else
		entry->mtime = (struct timespec){
			(time_t)number(header->mtime, sizeof header->mtime, UINT64_C(1) << 40, "mtime"), 0
		};
	entry->size = entry->kind == TAR_FILE ? (extended.size ? value->size : size) : 0;
	expect_data(entry->size);
	memset(&extended, 0, offsetof(__typeof__(extended), value));
}

bool tar_next(struct tar_entry *entry)
{
	static const char zeros[BLOCK];
	struct header header;
	skip_data();
	for (;;) {
		take_all(&header, BLOCK);
		if (memcmp(&header, zeros, BLOCK) == 0)
			return false;
		check_sum(&header);
		if (++entries > ENTRIES_MAX)
			fail(EXIT_REFUSED, "more than %d entries", ENTRIES_MAX);
		uint64_t size = number(header.size, sizeof header.size, INT64_MAX, "size");
		switch (header.type) {
		case 'x':
		case 'g':
		case 'L':
		case 'K':
			read_extension(header.type, size);
			break;
		default:
			describe(entry, &header, size);
			return true;
		}
	}
}
