#include "guest/allowance.h"

#include <stdint.h>
#include <time.h>

#define SECOND 1000
/* Containers whose addresses have the same last byte share one; there are rarely so many. */
#define SOURCES 256

static const struct {
	unsigned per_second, burst;
} rates[] = {
	[ALLOWANCE_CONNECTION] = { 100, 200 },
	[ALLOWANCE_DATAGRAM] = { 50, 100 },
};

bool allowance_take(enum allowance kind, struct in_addr source)
{
	/* What is used up, in thousandths; it wears off with time. */
	static struct {
		uint64_t used, at;
	} table[2][SOURCES];
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	uint64_t at = (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec / 1000000;
	__typeof__(&table[0][0]) entry = &table[kind][ntohl(source.s_addr) % SOURCES];
	uint64_t worn_off = (at - entry->at) * rates[kind].per_second;
	entry->used = entry->used > worn_off ? entry->used - worn_off : 0;
	entry->at = at;
	if (entry->used + SECOND > (uint64_t)rates[kind].burst * SECOND)
		return false;
	entry->used += SECOND;
	return true;
}
