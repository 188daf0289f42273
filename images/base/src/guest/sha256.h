/* SHA-256 (FIPS 180-4). */
#ifndef VMRUN_SHA256_H
#define VMRUN_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32
#define SHA256_BLOCK 64

struct sha256 {
	uint32_t state[8];
	uint64_t length;
	unsigned char block[SHA256_BLOCK];
};

void sha256_start(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const unsigned char *data, size_t size);

/* Writes the digest as 64 lower-case hex digits and NUL. */
void sha256_finish(struct sha256 *hash, char hex[SHA256_BYTES * 2 + 1]);

#endif
