"""Quotas: what fits beside what is there, and the figures of what does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import Refused
from vmrun.model.quantity import MIB
from vmrun.model.tenant import Quota, Share, Taken, Tenant
from vmrun.model.workload import EngineName
from vmrun.policy.quota import check_container, check_disk, check_guest, check_own_guest

ACME = Tenant("acme", 0.0, EngineName.DOCKER, Quota(2.0, 512 * MIB, 1 << 30, 2))
GUEST = Taken("a" * 12, "a" * 12, Share(), shared=True)


def inside(memory: int, passing: int = 0, disk: int = 0) -> Taken:
    return Taken("b" * 12, "web", Share(memory, passing, 1.0, disk))


def alone(memory: int = 0, cpus: float = 1.0) -> Taken:
    return Taken("c" * 12, "job", Share(memory, 0, cpus), own=True)


def test_what_fits_exactly_is_let_in() -> None:
    check_container(ACME, (GUEST, inside(256 * MIB)), Share(memory=256 * MIB, cpus=2.0))
    check_disk(ACME, (inside(0, disk=1 << 29),), (1 << 28,), 1 << 28)
    check_own_guest(ACME, (alone(cpus=1.5),), Share(cpus=0.5))
    check_guest(ACME, (GUEST, inside(0)))


def test_a_byte_more_is_refused_with_the_figures() -> None:
    with pytest.raises(Refused) as refused:
        check_container(ACME, (GUEST, inside(256 * MIB)), Share(memory=256 * MIB + 1))
    assert "takes 256 MiB" in refused.value.message
    assert "'acme' has 256 MiB of 512 MiB in use" in refused.value.message
    assert "--memory" in refused.value.hint
    assert refused.value.exit_status == 123


def test_containers_of_guests_of_their_own_count() -> None:
    with pytest.raises(Refused, match="500 MiB of 512 MiB in use"):
        check_container(ACME, (alone(500 * MIB),), Share(memory=13 * MIB))


def test_room_to_unpack_is_needed_once() -> None:
    others = (inside(100 * MIB, passing=100 * MIB), inside(100 * MIB, passing=50 * MIB))
    check_container(ACME, others, Share(memory=212 * MIB, passing=90 * MIB))
    with pytest.raises(Refused, match="101 MiB more while its image is unpacked"):
        check_container(ACME, others, Share(memory=212 * MIB, passing=101 * MIB))


def test_a_container_larger_than_its_guest_has_processors_is_refused() -> None:
    with pytest.raises(Refused, match=r"--cpus 2.5 is above the quota of tenant 'acme', 2"):
        check_container(ACME, (), Share(cpus=2.5))


@pytest.mark.parametrize("others", [(GUEST, alone()), (alone(), alone())])
def test_one_guest_more_than_the_quota_is_refused(others: Sequence[Taken]) -> None:
    with pytest.raises(Refused, match="may have 2 guests, and has 2"):
        check_guest(ACME, others)


def test_processors_of_guests_of_their_own_add_up() -> None:
    with pytest.raises(Refused, match=r"have 1\.5 of the 2"):
        check_own_guest(ACME, (alone(cpus=1.5), inside(0)), Share(cpus=1.0))


def test_volumes_and_scratch_space_share_a_quota() -> None:
    with pytest.raises(Refused, match=r"768 MiB of 1.0 GiB in use"):
        check_disk(ACME, (inside(0, disk=1 << 28),), (1 << 29,), (1 << 28) + 1)


def test_who_asks_for_no_disk_is_not_kept_out_by_volumes_that_exceed_it() -> None:
    check_disk(ACME, (), (1 << 40,), 0)


@given(st.lists(st.integers(0, 600), max_size=12))
def test_no_order_of_arrival_gets_more_than_the_quota(sizes: list[int]) -> None:
    held: list[Taken] = []
    for size in sizes:
        try:
            check_container(ACME, held, Share(memory=size * MIB))
        except Refused:
            continue
        held.append(inside(size * MIB))
    assert sum(one.share.memory for one in held) <= ACME.quota.memory
