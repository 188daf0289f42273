#include "guest/tarout.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/text.h"
#include "guest/guest.h"

#define BLOCK 512

static unsigned char output[262144];
static size_t waiting;

static void flush(void)
{
	if (write_all(STDOUT_FILENO, output, waiting) != 0)
		fail(EXIT_SHORT, "nobody reads the archive");
	waiting = 0;
}

void tarout_data(const void *data, size_t size)
{
	const unsigned char *from = data;
	while (size > 0) {
		size_t count = sizeof output - waiting < size ? sizeof output - waiting : size;
		memcpy(output + waiting, from, count);
		waiting += count;
		from += count;
		size -= count;
		if (waiting == sizeof output)
			flush();
	}
}

void tarout_zeros(uint64_t size)
{
	static const unsigned char zeros[16384];
	while (size > 0) {
		size_t count = size < sizeof zeros ? (size_t)size : sizeof zeros;
		tarout_data(zeros, count);
		size -= count;
	}
}

void tarout_pad(uint64_t size)
{
	tarout_zeros(-size % BLOCK);
}

void tarout_end(void)
{
	tarout_zeros(2 * BLOCK);
	flush();
}

/* Octal digits and a NUL, or GNU's big-endian binary for what does not fit. */
static void number(unsigned char *field, int size, uint64_t value)
{
	int digits = size - 1;
	if (digits * 3 >= 64 || value >> (digits * 3) == 0) {
		for (int i = digits - 1; i >= 0; i--, value >>= 3)
			field[i] = (unsigned char)('0' + (value & 7));
		return;
	}
	for (int i = size - 1; i > 0; i--, value >>= 8)
		field[i] = (unsigned char)value;
	field[0] = 0x80;
}

/* Where ustar has its fields (pax(1), "ustar Interchange Format"). */
static void header(char type, const char *name, const char *link, const struct stat *status,
		   uint64_t size)
{
	unsigned char block[BLOCK] = { 0 };
	unsigned sum = 0;
	int64_t mtime = status->st_mtim.tv_sec;
	memcpy(block, name, strnlen(name, 100));
	number(block + 100, 8, status->st_mode & 07777);
	number(block + 108, 8, status->st_uid);
	number(block + 116, 8, status->st_gid);
	number(block + 124, 12, size);
	/* A time that others can keep, whatever the container has set. */
	number(block + 136, 12, mtime < 0 ? 0 : mtime >> 33 ? UINT64_C(1) << 33 : (uint64_t)mtime);
	block[156] = (unsigned char)type;
	memcpy(block + 157, link, strnlen(link, 100));
	memcpy(block + 257, "ustar  ", 8);
	memset(block + 148, ' ', 8);
	for (size_t i = 0; i < BLOCK; i++)
		sum += block[i];
	number(block + 148, 7, sum);
	tarout_data(block, BLOCK);
}

static void long_name(char type, const char *name)
{
	static const struct stat nobody;
	size_t size = strlen(name) + 1;
	if (size <= 101)
		return;
	header(type, "././@LongLink", "", &nobody, size);
	tarout_data(name, size);
	tarout_pad(size);
}

void tarout_entry(char type, const char *name, const char *link, const struct stat *status,
		  uint64_t size)
{
	long_name('K', link);
	long_name('L', name);
	header(type, name, link, status, size);
}
