#include "guest/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest/guest.h"

#define HEADER 8
#define FRAME_MAX (HEADER + WIRE_PAYLOAD_MAX)
/* One event may put one frame of data and a few without. */
#define ROOM (FRAME_MAX + 256)

static unsigned char output[4 * FRAME_MAX];
static size_t output_start, output_end;
static unsigned char input[2 * FRAME_MAX];
static size_t input_start, input_end;

uint32_t wire_number(const unsigned char *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
	       bytes[3];
}

void wire_write_number(unsigned char *bytes, uint32_t number)
{
	for (int i = 0; i < 4; i++)
		bytes[i] = (unsigned char)(number >> (24 - 8 * i));
}

void wire_write_endpoint(unsigned char *bytes, const struct sockaddr_in *endpoint)
{
	/* Both are in network order. */
	memcpy(bytes, &endpoint->sin_addr, 4);
	memcpy(bytes + 4, &endpoint->sin_port, 2);
}

struct sockaddr_in wire_endpoint(const unsigned char *bytes)
{
	struct sockaddr_in endpoint = { .sin_family = AF_INET };
	memcpy(&endpoint.sin_addr, bytes, 4);
	memcpy(&endpoint.sin_port, bytes + 4, 2);
	return endpoint;
}

static void make_room(void)
{
	if (sizeof output - output_end >= ROOM)
		return;
	memmove(output, output + output_start, output_end - output_start);
	output_end -= output_start;
	output_start = 0;
}

bool wire_room(void)
{
	return sizeof output - (output_end - output_start) >= ROOM;
}

unsigned char *wire_place(void)
{
	make_room();
	return output + output_end + HEADER;
}

void wire_put(enum wire_kind kind, unsigned stream, const void *payload, size_t size)
{
	unsigned char *place = wire_place();
	if (sizeof output - output_end < HEADER + size)
		fail(EXIT_NETWORK, "no room for a frame");
	if (size > 0 && payload != place)
		memcpy(place, payload, size);
	place[-HEADER] = (unsigned char)kind;
	place[-HEADER + 1] = 0;
	place[-HEADER + 2] = (unsigned char)(stream >> 8);
	place[-HEADER + 3] = (unsigned char)stream;
	wire_write_number(place - 4, (uint32_t)size);
	output_end += HEADER + size;
}

void wire_put_number(enum wire_kind kind, unsigned stream, uint32_t number)
{
	unsigned char bytes[4];
	wire_write_number(bytes, number);
	wire_put(kind, stream, bytes, sizeof bytes);
}

bool wire_waiting(void)
{
	return output_start < output_end;
}

void wire_flush(void)
{
	while (wire_waiting()) {
		ssize_t done = write(STDOUT_FILENO, output + output_start, output_end - output_start);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno == EAGAIN)
			return;
		if (done < 0)
			exit(EXIT_DONE); /* the host is gone */
		output_start += (size_t)done;
	}
	output_start = 0;
	output_end = 0;
}

void wire_fill(void)
{
	memmove(input, input + input_start, input_end - input_start);
	input_end -= input_start;
	input_start = 0;
	if (input_end == sizeof input)
		return;
	ssize_t got = read(STDIN_FILENO, input + input_end, sizeof input - input_end);
	if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN))
		exit(EXIT_DONE);
	if (got > 0)
		input_end += (size_t)got;
}

bool wire_next(struct wire_frame *frame)
{
	const unsigned char *header = input + input_start;
	if (input_end - input_start < HEADER)
		return false;
	size_t size = wire_number(header + 4);
	if (size > WIRE_PAYLOAD_MAX || header[1] != 0)
		fail(EXIT_NETWORK, "a frame of the host is malformed");
	if (input_end - input_start < HEADER + size)
		return false;
	*frame = (struct wire_frame){
		.kind = header[0],
		.stream = (unsigned)header[2] << 8 | header[3],
		.payload = header + HEADER,
		.size = size,
	};
	input_start += HEADER + size;
	return true;
}
