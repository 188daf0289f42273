"""All faults that the campaign knows."""

from __future__ import annotations

from tests.faults import disk, kills, living, reclaiming, storm
from tests.faults.fault import Fault


def every_fault() -> list[Fault]:
    """All of them, in the order in which they are done."""
    return [
        *kills.attended(),
        *kills.detached(),
        *reclaiming.reclaiming(),
        *living.told(),
        *living.frozen(),
        *living.broken(),
        *storm.storms(),
        *reclaiming.reboots(),
        *disk.full(),
    ]
