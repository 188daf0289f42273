/* The TCP connections of a relay. */
#ifndef VMRUN_STREAMS_H
#define VMRUN_STREAMS_H

#include <poll.h>
#include <stdbool.h>

#include "guest/network.h"
#include "guest/wire.h"

/* Takes connections that containers make to one listener, as far as there is room. */
void streams_accept(int listener);

/* Carries out a frame of the host. Exits if it is not one that the host may send now. */
void streams_receive(const struct wire_frame *frame, struct network network);

/* Fills in what streams wait for, at most WIRE_STREAMS entries; returns how many. */
size_t streams_watch(struct pollfd *watched);

/* Moves bytes for the streams that the entries of the last streams_watch() say are ready. */
void streams_serve(const struct pollfd *watched, size_t count);

#endif
