#include "common/text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

ssize_t text_read(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	size_t length = 0;
	while (length < size - 1) {
		ssize_t got = read(fd, text + length, size - 1 - length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			int saved = errno;
			close(fd);
			errno = saved;
			return -1;
		}
		if (got == 0)
			break;
		length += (size_t)got;
	}
	close(fd);
	if (length > 0 && text[length - 1] == '\n')
		length--;
	text[length] = '\0';
	return (ssize_t)length;
}

static int write_and_close(int fd, const char *text)
{
	int result = write_all(fd, text, strlen(text));
	int saved = errno;
	close(fd);
	errno = saved;
	return result;
}

int text_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	return fd < 0 ? -1 : write_and_close(fd, text);
}

int text_create(const char *path, const char *text, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
	return fd < 0 ? -1 : write_and_close(fd, text);
}

bool text_number(const char *text, uint64_t max, uint64_t *value)
{
	size_t length = strspn(text, "0123456789");
	if (length == 0 || length > 19 || text[length] != '\0')
		return false;
	uint64_t number = 0;
	for (size_t i = 0; i < length; i++)
		number = number * 10 + (uint64_t)(text[i] - '0');
	*value = number;
	return number <= max;
}

int write_all(int fd, const void *data, size_t size)
{
	const char *from = data;
	while (size > 0) {
		ssize_t done = write(fd, from, size);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -1;
		from += done;
		size -= (size_t)done;
	}
	return 0;
}
