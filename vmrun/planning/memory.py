"""How much memory a guest and its QEMU need for a workload's own limit."""

from __future__ import annotations

from collections.abc import Sequence

from vmrun.model.base import Flavour
from vmrun.model.plan import Accelerator, MemoryPlan
from vmrun.model.quantity import MIB

_GUEST_RESERVE = {Flavour.MINIMAL: 96 * MIB, Flavour.DOCKER: 288 * MIB}
"""Kernel, init, sshd, page cache of the base's programs; with docker also both daemons.
Measured idle: 34 MiB and about 145 MiB; the rest is room for delivery and page tables."""

_PAGE_TABLES = 64
"""One byte of struct page and slab for this many bytes of guest memory (64 of 4096, rounded)."""

_QEMU_OVERHEAD = {Accelerator.KVM: 96 * MIB, Accelerator.TCG: 192 * MIB}
"""QEMU's own memory: code, device buffers and, when emulating, the translation cache."""

_DISK_OVERHEAD = 32 * MIB
"""QEMU's cache of one qcow2 file's tables at its largest (qcow2-cache.txt, ``l2-cache-size``)."""

_STEP = 8 * MIB


_CONTAINER = {Flavour.MINIMAL: 8 * MIB, Flavour.DOCKER: 24 * MIB}
"""What one more container costs in a guest that has others: its gate, its runtime's processes (with
docker a shim), its SSH sessions."""


def beside(flavour: Flavour, unpacked: int, blobs: Sequence[int]) -> int:
    """The bytes that an image takes while it is unpacked, besides what it is unpacked to."""
    return unpacked if flavour is Flavour.DOCKER else max(blobs, default=0)


def plan_shared_memory(
    guest: MemoryPlan,
    *,
    workload: int,
    unpacked: int,
    blobs: Sequence[int],
    flavour: Flavour,
    data: int = 0,
) -> MemoryPlan:
    """The sizes of a run in a guest that was planned for several: ``reserve`` is what its container
    costs there besides."""
    return MemoryPlan(
        workload=workload,
        image=unpacked + beside(flavour, unpacked, blobs) + data,
        reserve=_CONTAINER[flavour],
        guest=guest.guest,
        host=guest.host,
    )


def plan_memory(
    *,
    workload: int,
    unpacked: int,
    blobs: Sequence[int],
    flavour: Flavour,
    accelerator: Accelerator,
    data: int = 0,
    disks: int = 0,
) -> MemoryPlan:
    """All sizes in bytes.

    An image is unpacked into the guest's tmpfs, so its bytes are the guest's memory. ``blobs``
    are its layers' sizes: one lies beside what it is unpacked to until that is done; dockerd
    unpacks all of them before it installs the first. ``data`` is what is copied into the guest's
    memory besides; it counts as part of the image. ``disks`` are those that can be written to.
    """
    image = unpacked + beside(flavour, unpacked, blobs) + data
    reserve = _GUEST_RESERVE[flavour] + (workload + image) // _PAGE_TABLES
    guest = -(-(workload + image + reserve) // _STEP) * _STEP
    return MemoryPlan(
        workload=workload,
        image=image,
        reserve=guest - workload - image,
        guest=guest,
        host=guest + _QEMU_OVERHEAD[accelerator] + disks * _DISK_OVERHEAD,
    )
