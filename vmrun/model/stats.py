"""What a live run uses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """What a container and the QEMU of its guest use now: bytes, counts and seconds. ``read_at`` is
    in seconds since 1970; two readings make a rate."""

    memory: int
    memory_limit: int
    pids: int
    pids_limit: int
    cpu_seconds: float
    cpus: float
    guest_memory: int
    qemu_memory: int | None
    qemu_cpu_seconds: float
    read_at: float
