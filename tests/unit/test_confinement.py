"""A reading that is as planned passes; each single deviation is noticed, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine_samples import container_plan, image_of, plan_of
from vmrun.model.capability import CAPABILITIES, capability_mask
from vmrun.model.live import ContainerReading, QemuReading
from vmrun.model.plan import Plan, Tmpfs
from vmrun.policy.confinement import check_container, check_qemu, failed

QEMU_UID = 2_000_000_003
LIMIT = 368 << 20


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    container = container_plan(
        groups=(44, 100),
        capabilities=("CAP_NET_BIND_SERVICE",),
        tmpfs=(
            Tmpfs("/tmp", 16 << 20, 0o1777, executable=False),
            Tmpfs("/build", 16 << 20, 0o1777, executable=True),
        ),
    )
    return plan_of(image_of(tmp_path, []), container)


MASK = f"{capability_mask(('CAP_NET_BIND_SERVICE',)):016x}"
GOOD = ContainerReading(
    pid=7,
    status={
        "Uid": "65532\t65532\t65532\t65532",
        "Gid": "65532\t65532\t65532\t65532",
        "Groups": "44 100 65532 ",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), MASK),
        "NoNewPrivs": "1",
        "Seccomp": "2",
    },
    root_read_only=True,
    mounts={
        "/": ("tmpfs", frozenset({"ro"})),
        "/tmp": ("tmpfs", frozenset({"rw", "nosuid", "nodev", "noexec"})),
        "/build": ("tmpfs", frozenset({"rw", "nosuid", "nodev"})),
    },
    namespaces=dict.fromkeys(("cgroup", "ipc", "mnt", "net", "pid", "uts"), True),
    cgroup={
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "32",
        "cpu.max": "50000 100000",
    },
    open_files=("256", "256"),
)


def test_a_good_container_passes(plan: Plan) -> None:
    assertions = check_container(plan, GOOD)
    assert failed(assertions) == ()
    assert {item.subject for item in assertions} == {"container"}
    assert len({item.name for item in assertions}) == len(assertions)


def status(**fields: str) -> Callable[[ContainerReading], ContainerReading]:
    return lambda reading: replace(reading, status={**reading.status, **fields})


def without(field: str) -> Callable[[ContainerReading], ContainerReading]:
    return lambda reading: replace(
        reading, status={k: v for k, v in reading.status.items() if k != field}
    )


def cgroup(name: str, value: str | None) -> Callable[[ContainerReading], ContainerReading]:
    def change(reading: ContainerReading) -> ContainerReading:
        files = {key: text for key, text in reading.cgroup.items() if key != name}
        return replace(reading, cgroup=files if value is None else {**files, name: value})

    return change


def mount(path: str, kind: str, *options: str) -> Callable[[ContainerReading], ContainerReading]:
    return lambda reading: replace(
        reading, mounts={**reading.mounts, path: (kind, frozenset(options))}
    )


def shared(kind: str) -> Callable[[ContainerReading], ContainerReading]:
    return lambda reading: replace(reading, namespaces={**reading.namespaces, kind: False})


FULL = f"{capability_mask(CAPABILITIES):016x}"
MORE = f"{capability_mask(('CAP_NET_BIND_SERVICE', 'CAP_SYS_ADMIN')):016x}"
NONE = "0" * 16

CONTAINER: list[tuple[str, Callable[[ContainerReading], ContainerReading]]] = [
    ("uid", status(Uid="0 0 0 0")),
    ("uid", status(Uid="65532 0 65532 65532")),
    ("uid", status(Uid="65532 65532 0 65532")),
    ("uid", status(Uid="65532")),
    ("uid", without("Uid")),
    ("gid", status(Gid="0 0 0 0")),
    ("gid", status(Gid="65532 65532 0 65532")),
    ("gid", without("Gid")),
    ("groups", status(Groups="0 44 100")),
    ("groups", status(Groups="44")),
    ("groups", without("Groups")),
    *((field, status(**{field: FULL})) for field in ("CapBnd", "CapPrm", "CapEff")),
    *((field, status(**{field: MORE})) for field in ("CapInh", "CapAmb")),
    # Less than was granted is another plan too, but for what is only passed on.
    *((field, status(**{field: NONE})) for field in ("CapBnd", "CapPrm", "CapEff")),
    *((f, without(f)) for f in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")),
    ("CapAmb", status(CapAmb="garbage")),
    ("NoNewPrivs", status(NoNewPrivs="0")),
    ("NoNewPrivs", without("NoNewPrivs")),
    ("Seccomp", status(Seccomp="0")),
    ("Seccomp", status(Seccomp="1")),
    ("Seccomp", without("Seccomp")),
    ("root read-only", lambda reading: replace(reading, root_read_only=False)),
    *(
        (f"private {kind} namespace", shared(kind))
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts")
    ),
    ("private net namespace", lambda reading: replace(reading, namespaces={
        kind: True for kind in reading.namespaces if kind != "net"
    })),
    *(
        (name, cgroup(name, value))
        for name, more in (
            ("memory.max", str(65 << 20)),
            ("memory.swap.max", "1"),
            ("pids.max", "33"),
            ("cpu.max", "100000 100000"),
        )
        for value in ("max", more, None)
    ),
    ("open files", lambda reading: replace(reading, open_files=("256", "1048576"))),
    ("open files", lambda reading: replace(reading, open_files=None)),
    ("tmpfs /tmp", mount("/tmp", "tmpfs", "rw", "nosuid", "nodev")),
    ("tmpfs /tmp", mount("/tmp", "tmpfs", "rw", "noexec", "nodev")),
    ("tmpfs /tmp", mount("/tmp", "tmpfs", "rw", "noexec", "nosuid")),
    ("tmpfs /tmp", mount("/tmp", "ext4", "rw", "noexec", "nosuid", "nodev")),
    ("tmpfs /tmp", lambda reading: replace(reading, mounts={
        path: entry for path, entry in reading.mounts.items() if path != "/tmp"
    })),
    ("tmpfs /build", mount("/build", "tmpfs", "rw", "nodev")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), CONTAINER)
def test_a_container_that_deviates_is_noticed(
    plan: Plan, name: str, change: Callable[[ContainerReading], ContainerReading]
) -> None:
    assert [item.name for item in failed(check_container(plan, change(GOOD)))] == [name]


def test_a_failed_assertion_says_what_was_expected_and_found(plan: Plan) -> None:
    (item,) = failed(check_container(plan, status(Seccomp="0")(GOOD)))
    assert (item.expected, item.actual) == ("2", "0")


def test_what_is_only_passed_on_may_be_empty(plan: Plan) -> None:
    reading = status(CapInh=NONE, CapAmb=NONE)(GOOD)
    assert failed(check_container(plan, reading)) == ()


def test_a_writable_root_passes_only_when_planned(plan: Plan) -> None:
    loosened = replace(plan, container=replace(plan.container, read_only=False))
    assert failed(check_container(loosened, replace(GOOD, root_read_only=False))) == ()
    assert failed(check_container(loosened, GOOD))


def test_nothing_read_means_nothing_holds(plan: Plan) -> None:
    empty = ContainerReading(7, {}, False, {}, {}, {})
    assertions = check_container(plan, empty)
    assert failed(assertions) == assertions


# QEMU.

PRIVILEGED = QemuReading(
    pid=9,
    uid=QEMU_UID,
    seccomp=2,
    no_new_privs=True,
    effective_capabilities=0,
    own_mount_namespace=True,
    accelerator="tcg",
    devices=(
        "audio:none",
        "channel:unix",
        "channel:unix",
        "disk:file",
        "input:keyboard",
        "rng:virtio",
        "serial:unix",
    ),
    memory_limit=LIMIT,
)
PLAIN = replace(PRIVILEGED, uid=1000, own_mount_namespace=False, memory_limit=None)


@pytest.fixture
def privileged(plan: Plan) -> Plan:
    guest = replace(plan.guest, qemu_uid=QEMU_UID, qemu_gid=QEMU_UID, limit_host_memory=True)
    assert guest.memory.host == LIMIT
    return replace(plan, guest=guest)


def test_a_good_qemu_passes(plan: Plan, privileged: Plan) -> None:
    assert failed(check_qemu(privileged.guest, PRIVILEGED)) == ()
    assert failed(check_qemu(plan.guest, PLAIN)) == ()
    assert {item.subject for item in check_qemu(privileged.guest, PRIVILEGED)} == {"qemu"}


QEMU: list[tuple[str, dict[str, Any]]] = [
    ("effective capabilities", {"effective_capabilities": 1 << 21}),
    ("seccomp mode", {"seccomp": 0}),
    ("seccomp mode", {"seccomp": 1}),
    ("no_new_privs", {"no_new_privs": False}),
    ("accelerator", {"accelerator": "kvm"}),
    ("accelerator", {"accelerator": ""}),
    *(
        ("unplanned devices", {"devices": (*PRIVILEGED.devices, device)})
        for device in (
            "interface:network",
            "interface:user",
            "hostdev:pci",
            "filesystem:mount",
            "graphics:vnc",
            "redirdev:spicevmc",
            "disk:network",
            "disk:block",
            "channel:spicevmc",
            "serial:tcp",
            "memballoon:virtio",
            "sound:ich6",
            "tpm:emulator",
            "vsock:virtio",
        )
    ),
]
PRIVILEGED_ONLY: list[tuple[str, dict[str, Any]]] = [
    ("uid", {"uid": 0}),
    ("uid", {"uid": 64055}),
    ("uid", {"uid": QEMU_UID + 1}),
    ("own mount namespace", {"own_mount_namespace": False}),
    ("memory limit", {"memory_limit": None}),
    ("memory limit", {"memory_limit": LIMIT + 1}),
]


@pytest.mark.parametrize(("name", "changes"), [*QEMU, *PRIVILEGED_ONLY])
def test_a_qemu_that_deviates_is_noticed(
    privileged: Plan, name: str, changes: dict[str, Any]
) -> None:
    found = failed(check_qemu(privileged.guest, replace(PRIVILEGED, **changes)))
    assert [item.name for item in found] == [name]


@pytest.mark.parametrize(("name", "changes"), [*QEMU, ("uid", {"uid": 0})])
def test_a_plain_users_qemu_that_deviates_is_noticed(
    plan: Plan, name: str, changes: dict[str, Any]
) -> None:
    found = failed(check_qemu(plan.guest, replace(PLAIN, **changes)))
    assert [item.name for item in found] == [name]


def test_an_unplanned_device_is_named(plan: Plan) -> None:
    reading = replace(PLAIN, devices=("disk:file", "interface:network"))
    (item,) = failed(check_qemu(plan.guest, reading))
    assert item.actual == "interface:network"
