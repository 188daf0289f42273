"""Is what was read live what the plan promised? Pure; the pipeline refuses to start otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from vmrun.model.capability import capability_mask
from vmrun.model.live import ContainerReading, QemuReading
from vmrun.model.plan import GuestPlan, Plan
from vmrun.model.quantity import CPU_PERIOD, cpu_quota
from vmrun.model.report import Assertion
from vmrun.planning.network import network_files

# What libvirt lists of the chipset without anything plugged into it, and at most one of each.
_CHIPSET = ("audio:none", "input:keyboard", "input:mouse", "watchdog:itco")
_PLANNED = ("disk:file", "rng:virtio", "serial:unix")

_PRIVATE = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


def check_qemu(guest: GuestPlan, reading: QemuReading) -> tuple[Assertion, ...]:
    """QEMU: its own uid, no capabilities, seccomp, no new privileges, no unplanned device."""

    def items() -> Iterator[Assertion]:
        if guest.qemu_uid is not None:
            yield _same("qemu", "uid", guest.qemu_uid, reading.uid)
            yield _same("qemu", "own mount namespace", True, reading.own_mount_namespace)
        else:
            yield _check("qemu", "uid", "not 0", reading.uid, reading.uid != 0)
        yield _same("qemu", "effective capabilities", 0, reading.effective_capabilities)
        yield _same("qemu", "seccomp mode", 2, reading.seccomp)
        yield _same("qemu", "no_new_privs", True, reading.no_new_privs)
        yield _same("qemu", "accelerator", str(guest.accelerator), reading.accelerator)
        extra = _unplanned(reading.devices, channels=guest.ssh_ports + 1, disks=len(guest.disks))
        yield _check("qemu", "unplanned devices", "none", ", ".join(extra) or "none", not extra)
        encrypted = [disk for disk in reading.disks if disk.endswith(" luks")]
        yield _same("qemu", "encrypted disks", _words_of(_disks(guest)), _words_of(encrypted))
        other = [disk for disk in reading.disks if disk not in encrypted]
        yield _check(
            "qemu",
            "other disks",
            "read-only",
            _words_of(other),
            all(disk.endswith(" ro") for disk in other),
        )
        if guest.limit_host_memory:
            limit = reading.memory_limit
            yield _check(
                "qemu",
                "memory limit",
                f"at most {guest.memory.host}",
                limit,
                limit is not None and limit <= guest.memory.host,
            )

    return tuple(items())


def check_container(plan: Plan, reading: ContainerReading) -> tuple[Assertion, ...]:
    """The container's first process, read before its first own instruction."""
    container = plan.container
    status = reading.status
    expected = capability_mask(container.capabilities)

    def items() -> Iterator[Assertion]:
        yield _same("container", "uid", _four(container.uid), _words(status.get("Uid")))
        yield _same("container", "gid", _four(container.gid), _words(status.get("Gid")))
        yield _same(
            "container",
            "groups",
            sorted({*container.groups}),
            sorted(
                {int(g) for g in status.get("Groups", "").split() if g.isdigit()} - {container.gid}
            ),
        )
        for field in ("CapBnd", "CapPrm", "CapEff"):
            yield _same("container", field, f"{expected:016x}", status.get(field, "absent"))
        for field in ("CapInh", "CapAmb"):
            actual = status.get(field, "absent")
            yield _check(
                "container", field, f"within {expected:016x}", actual, _within(actual, expected)
            )
        yield _same("container", "NoNewPrivs", "1", status.get("NoNewPrivs", "absent"))
        yield _same("container", "Seccomp", "2", status.get("Seccomp", "absent"))
        yield _same("container", "root read-only", container.read_only, reading.root_read_only)
        for kind in _PRIVATE:
            yield _same(
                "container", f"private {kind} namespace", True, reading.namespaces.get(kind, False)
            )
        yield _same(
            "container",
            "memory.max",
            str(container.limits.memory),
            reading.cgroup.get("memory.max", "absent"),
        )
        yield _same(
            "container", "memory.swap.max", "0", reading.cgroup.get("memory.swap.max", "absent")
        )
        yield _same(
            "container",
            "pids.max",
            str(container.limits.pids),
            reading.cgroup.get("pids.max", "absent"),
        )
        yield _same(
            "container",
            "cpu.max",
            f"{cpu_quota(container.limits.cpus)} {CPU_PERIOD}",
            reading.cgroup.get("cpu.max", "absent"),
        )
        files = str(container.limits.files)
        yield _same("container", "open files", (files, files), reading.open_files)
        for mount in container.tmpfs:
            kind, options = reading.mounts.get(mount.path, ("absent", frozenset()))
            wanted = {"nosuid", "nodev"} | (set() if mount.executable else {"noexec"})
            yield _check(
                "container",
                f"tmpfs {mount.path}",
                "tmpfs " + ",".join(sorted(wanted)),
                f"{kind} " + ",".join(sorted(options)),
                kind == "tmpfs" and wanted <= options,
            )
        for bind in container.binds:
            kind, options = reading.mounts.get(bind.target, ("absent", frozenset()))
            wanted = {"nosuid", "nodev"} | (set() if bind.executable else {"noexec"})
            wanted |= {"ro"} if bind.read_only else {"rw"}
            yield _check(
                "container",
                f"bind {bind.target}",
                ",".join(sorted(wanted)),
                f"{kind} " + ",".join(sorted(options)),
                wanted <= options,
            )

        for file in network_files(container.network) if container.network else ():
            kind, options = reading.mounts.get(file.target, ("absent", frozenset()))
            found = f"{kind} " + ",".join(sorted(options))
            yield _check("container", f"file {file.target}", "ro", found, "ro" in options)

    return tuple(items())


def failed(assertions: tuple[Assertion, ...]) -> tuple[Assertion, ...]:
    """Those that do not hold."""
    return tuple(item for item in assertions if not item.ok)


def _disks(guest: GuestPlan) -> list[str]:
    """Those with the workload's data, as they are read."""
    return sorted(f"{disk.path} {'ro' if disk.read_only else 'rw'} luks" for disk in guest.disks)


def _words_of(disks: Iterable[str]) -> str:
    return ", ".join(sorted(disks)) or "none"


def _unplanned(devices: tuple[str, ...], *, channels: int, disks: int) -> list[str]:
    allowed = Counter((*_CHIPSET, *_PLANNED, *["channel:unix"] * channels, *["disk:file"] * disks))
    return sorted((Counter(devices) - allowed).elements())


def _check(subject: str, name: str, expected: object, actual: object, ok: bool) -> Assertion:
    return Assertion(subject, name, str(expected), str(actual), ok)


def _same(subject: str, name: str, expected: object, actual: object) -> Assertion:
    return _check(subject, name, expected, actual, expected == actual)


def _within(actual: str, expected: int) -> bool:
    try:
        return int(actual, 16) & ~expected == 0
    except ValueError:
        return False


def _four(number: int) -> str:
    return " ".join([str(number)] * 4)


def _words(text: str | None) -> str:
    return " ".join((text or "absent").split())
