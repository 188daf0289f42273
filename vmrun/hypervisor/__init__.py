"""Guests through libvirt (and QEMU's process through the kernel)."""

import os

# Read when libvirt is imported: the embedded driver would log to our stderr what it raises anyway.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
