/* The supervising init's event loop: every source is edge-triggered and never blocks. */
#ifndef VMRUN_LOOP_H
#define VMRUN_LOOP_H

#include <stdint.h>

struct source {
	int fd;
	void (*ready)(struct source *source, uint32_t events);
};

/* Watches source->fd for input, output and hang-up, edge-triggered. For a virtio-serial port the
 * kernel signals an edge on every change, also when the host connects (EPOLLHUP is then gone). */
void loop_watch(struct source *source);

void loop_forget(struct source *source);

/* Asks for ports_retry() and services_retry() in this many milliseconds. */
void loop_retry_in(unsigned milliseconds);

#endif
