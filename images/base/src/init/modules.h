/* Loading kernel modules from a list, in its order: no depmod data, no module autoloading. */
#ifndef VMRUN_MODULES_H
#define VMRUN_MODULES_H

/* Loads each file named in the list (one path a line, relative to its directory); a missing
 * list is an empty one. A module that cannot be loaded is fatal. */
void modules_load(const char *directory);

#endif
