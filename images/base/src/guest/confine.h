/* Giving up what a relay needs only to begin. */
#ifndef VMRUN_CONFINE_H
#define VMRUN_CONFINE_H

/* Becomes a user without a name, capabilities or children, whom the kernel kills for any system
 * call but those of moving bytes. Exits with EXIT_NETWORK if anything of it fails. */
void confine(void);

#endif
