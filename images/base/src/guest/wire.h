/*
 * The frames between a relay and the host, on stdin and stdout (docs/reference/guest-contract.md,
 * "Wire"). A frame is kind, zero, stream (16 bits), length (32 bits), payload; numbers are
 * big-endian.
 */
#ifndef VMRUN_WIRE_H
#define VMRUN_WIRE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION 1
#define WIRE_PAYLOAD_MAX 32768
#define WIRE_STREAMS 512
#define WIRE_TO_HOST_WINDOW 131072
#define WIRE_TO_GUEST_WINDOW 65536
#define WIRE_DATAGRAM_MAX 4096
#define WIRE_ENDPOINT 6

enum wire_kind {
	WIRE_HELLO = 1,
	WIRE_OPEN,
	WIRE_CONNECT,
	WIRE_OPENED,
	WIRE_REFUSED,
	WIRE_DATA,
	WIRE_WINDOW,
	WIRE_END,
	WIRE_CLOSE,
	WIRE_DATAGRAM,
};

struct wire_frame {
	enum wire_kind kind;
	unsigned stream;
	const unsigned char *payload; /* valid until the next wire_next() */
	size_t size;
};

/* Whether a frame of the greatest size can be put. Nothing may be put, and so nothing that could
 * call for an answer may be taken, unless there is room. */
bool wire_room(void);

void wire_put(enum wire_kind kind, unsigned stream, const void *payload, size_t size);
void wire_put_number(enum wire_kind kind, unsigned stream, uint32_t number);

/* A place for the payload of a frame of WIRE_PAYLOAD_MAX bytes at most, which wire_put() with
 * that payload then does not copy. */
unsigned char *wire_place(void);

/* Whether there are bytes to write; writes what the host takes. Exits when it is gone. */
bool wire_waiting(void);
void wire_flush(void);

/* Reads what there is. Exits when the host has ended it. */
void wire_fill(void);

/* The next whole frame; exits if what came is none. */
bool wire_next(struct wire_frame *frame);

uint32_t wire_number(const unsigned char *bytes);
void wire_write_number(unsigned char *bytes, uint32_t number);
void wire_write_endpoint(unsigned char *bytes, const struct sockaddr_in *endpoint);
struct sockaddr_in wire_endpoint(const unsigned char *bytes);

#endif
