/* dm-verity without libdevmapper: three ioctls. */
#ifndef VMRUN_VERITY_H
#define VMRUN_VERITY_H

/* Opens dm-verity over device as the kernel's first device-mapper device, /dev/dm-0.
 * parameters is ROOTHASH:SALT:DATA_BLOCKS:HASH_START. Any failure is fatal. */
void verity_open(const char *device, const char *parameters);

#endif
