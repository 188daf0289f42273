"""The fault campaign in short: some of its faults, always the same, each followed by one gc.

All of it: ``python -m tests.e2e.fault_campaign``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.fault_campaign import field_of
from tests.faults.disk import SIZE
from tests.faults.every import every_fault
from tests.faults.fault import Field, suffer

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

FAULTS = {fault.name: fault for fault in every_fault()}
SOME = (
    "run killed: claimed, no intent yet",
    "run killed: QEMU made",
    "run -d killed: supervisor started, told nothing",
    "supervisor killed: not yet adopted",
    "gc killed: directory cleared",
    "gc killed: record half written",
    "two gc at once",
    "pid of a dead owner is somebody else's",
    "intent damaged while QEMU runs",
    "locks and folders of the dead",
    "run killed: workload",
    "supervisor killed: workload",
    "QEMU killed: workload",
)
ON_A_SMALL_DISK = ("disk full before run", "disk full during gc")


@pytest.fixture(scope="module")
def place(busybox: str) -> Iterator[Field]:
    """One for all: what one fault leaves must not be there after the next either."""
    with field_of(busybox, seed=1) as made:
        yield made


@pytest.fixture(scope="module")
def small_place(busybox: str) -> Iterator[Field]:
    with field_of(busybox, seed=1, size=SIZE, bystander=False) as made:
        yield made


@pytest.mark.parametrize("name", SOME)
def test_one_gc_is_enough_and_nobody_else_suffers(place: Field, name: str) -> None:
    assert suffer(FAULTS[name], place).violations == []


@pytest.mark.parametrize("name", ON_A_SMALL_DISK)
def test_a_full_disk_is_said_and_survived(small_place: Field, name: str) -> None:
    assert suffer(FAULTS[name], small_place).violations == []
