/* The control port: lines of text between the host and PID 1. */
#ifndef VMRUN_CONTROL_H
#define VMRUN_CONTROL_H

#include <stdbool.h>

void control_open(const char *node);

/* Goes on with input left over by the last step. False when there is none: one step handles a
 * bounded amount, so that a flooding host cannot keep PID 1 from its other duties. */
bool control_step(void);

/* Queues one line, which ends with \n. */
void control_send(const char *line);

#endif
