"""A container plan in the words of each engine.

:func:`oci_spec` writes the OCI runtime specification's ``config.json`` (config.md,
config-linux.md) for crun, :func:`docker_create` the body of docker's ``POST
/containers/create`` (Engine API). Both say the same confinement; what docker adds or cannot
say is noted where it happens. Nothing here decides policy: that is the plan's.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Any

from vmrun.model.errors import UsageError
from vmrun.model.plan import ContainerPlan, Tmpfs
from vmrun.model.quantity import CPU_PERIOD, cpu_quota
from vmrun.model.storage import Bind
from vmrun.planning.network import network_files
from vmrun.planning.seccomp import docker_seccomp, oci_seccomp

GATE = "/usr/lib/vmrun/gate"
"""The gate in the guest (guest contract, "Gate")."""

GATE_IN_CONTAINER = "/.vmrun-gate"
"""Where the container sees it: outside /dev, /tmp and /run, so that these can be noexec."""

OOM_SCORE_ADJ = 500
"""When the guest itself runs short, the workload goes before the guest's own daemons."""

_SHM = "/dev/shm"  # noqa: S108 - the container's, not ours
_SHM_SIZE = 64 << 20

# The container is alone in its network namespace, so a non-root server may take any port there.
_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0"}

_NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")

# null, zero, full, random, urandom, tty; then what a terminal needs: ptmx and the pts behind it.
# "m" because crun makes the nodes from inside the limited cgroup; the workload cannot, by the
# seccomp filter and for want of CAP_MKNOD.
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))


def gate_argv(argv: Iterable[str]) -> list[str]:
    """The first process: the gate, which executes ``argv`` once it is opened."""
    return [GATE_IN_CONTAINER, "--", *argv]


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        "options": list(options),
    }


def _shm(plan: ContainerPlan) -> Tmpfs:
    for mount in plan.tmpfs:
        if mount.path == _SHM:
            return mount
    return Tmpfs(_SHM, _SHM_SIZE, 0o1777, executable=False)


def _own_tmpfs(plan: ContainerPlan) -> list[Tmpfs]:
    # Parents before children, or the parent would hide what was mounted below it.
    return sorted((item for item in plan.tmpfs if item.path != _SHM), key=lambda item: item.path)


def _tmpfs_options(plan: ContainerPlan, mount: Tmpfs) -> list[str]:
    return [
        "nosuid",
        "nodev",
        "exec" if mount.executable else "noexec",
        f"size={mount.size}",
        f"mode={mount.mode:04o}",
        # Owned by the workload's user, who could not write to a tmpfs of root's otherwise.
        f"uid={plan.uid}",
        f"gid={plan.gid}",
    ]


def _own_mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    """Its tmpfs and its data, parents before children whichever they are."""
    mounts = [
        _mount(item.path, "tmpfs", "tmpfs", *_tmpfs_options(plan, item))
        for item in _own_tmpfs(plan)
    ]
    mounts += [
        _mount(item.target, "bind", item.source, "bind", "rprivate", *_bind_options(item))
        for item in (*plan.binds, *_network_files(plan))
    ]
    return sorted(mounts, key=lambda item: str(item["destination"]))


def _network_files(plan: ContainerPlan) -> tuple[Bind, ...]:
    return network_files(plan.network) if plan.network else ()


def _bind_options(bind: Bind) -> list[str]:
    return [
        "ro" if bind.read_only else "rw",
        "nosuid",
        "nodev",
        "exec" if bind.executable else "noexec",
    ]


def _mounts(plan: ContainerPlan, gate: str) -> list[dict[str, Any]]:
    shm = _shm(plan)
    strict = ("nosuid", "noexec", "nodev")
    return [
        _mount("/proc", "proc", "proc", *strict),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=64k"),
        _mount(
            "/dev/pts", "devpts", "devpts",
            "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5",
        ),
        _mount(
            _SHM, "tmpfs", "shm", *strict, f"mode={shm.mode:04o}", f"size={shm.size}"
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", *strict),
        _mount("/sys", "sysfs", "sysfs", *strict, "ro"),
        # Read-only, for runtimes that size themselves by it (Java, Go, node).
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *strict, "relatime", "ro"),
        *_own_mounts(plan),
        _mount(GATE_IN_CONTAINER, "bind", gate, "bind", "ro", "nosuid", "nodev"),
    ]  # fmt: skip


def _capabilities(plan: ContainerPlan) -> dict[str, list[str]]:
    held = sorted(plan.capabilities)
    # A user other than root keeps capabilities across execve only if they are ambient, which
    # must be inheritable. Root has them anyway, and inheritable ones would then leak to what
    # it executes as someone else (CVE-2022-24769).
    passed_on = held if plan.uid != 0 else []
    return {
        "bounding": held,
        "effective": held,
        "permitted": held,
        "inheritable": passed_on,
        "ambient": passed_on,
    }


def _devices() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules


def _resources(plan: ContainerPlan) -> dict[str, Any]:
    limits = plan.limits
    return {
        # The specification's swap counts memory and swap together: equal means no swap.
        "memory": {"limit": limits.memory, "swap": limits.memory},
        "pids": {"limit": limits.pids},
        "cpu": {"quota": cpu_quota(limits.cpus), "period": CPU_PERIOD},
        "devices": _devices(),
    }


def _process(plan: ContainerPlan) -> dict[str, Any]:
    """Every process of the container, but for what it executes."""
    return {
        "user": {"uid": plan.uid, "gid": plan.gid, "additionalGids": list(plan.groups)},
        "env": list(plan.env),
        "cwd": plan.workdir,
        "capabilities": _capabilities(plan),
        "noNewPrivileges": plan.no_new_privileges,
        "oomScoreAdj": OOM_SCORE_ADJ,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": plan.limits.files, "hard": plan.limits.files},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }


def oci_process(
    plan: ContainerPlan,
    argv: Iterable[str],
    *,
    env: Iterable[str] = (),
    workdir: str | None = None,
    user: tuple[int, int] | None = None,
    terminal: bool = False,
) -> dict[str, Any]:
    """One more process in a container of ``plan``, confined like its first one: ``env`` is added to
    the container's, ``user`` is uid and gid. The seccomp filter is the container's own."""
    process = {**_process(plan), "args": list(argv), "terminal": terminal}
    added = dict(setting.partition("=")[::2] for setting in env)
    kept = [setting for setting in plan.env if setting.partition("=")[0] not in added]
    process["env"] = [*kept, *(f"{key}={value}" for key, value in added.items())]
    if workdir is not None:
        process["cwd"] = workdir
    if user is not None:
        process["user"] = {"uid": user[0], "gid": user[1], "additionalGids": []}
    return process


def oci_spec(
    plan: ContainerPlan, *, rootfs: str, cgroup_path: str, gate: str = GATE
) -> dict[str, Any]:
    """``config.json`` for ``plan`` on the directory ``rootfs``, in the cgroup ``cgroup_path``
    (below the cgroup file system's root). The network namespace has ``lo`` only; crun sets it
    up (libcrun, ``libcrun_configure_network``)."""
    return {
        "ociVersion": "1.0.2",
        "hostname": plan.hostname,
        "root": {"path": rootfs, "readonly": plan.read_only},
        "process": {**_process(plan), "args": gate_argv(plan.argv), "terminal": plan.terminal},
        "mounts": _mounts(plan, gate),
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "cgroupsPath": cgroup_path,
            "resources": _resources(plan),
            "sysctl": dict(_SYSCTLS),
            "seccomp": oci_seccomp(plan.capabilities),
            "maskedPaths": list(plan.masked_paths),
            "readonlyPaths": list(plan.readonly_paths),
        },
    }


def _volume_cover(plan: ContainerPlan, volumes: Iterable[str]) -> dict[str, str]:
    # docker gives each VOLUME of an image a writable directory of its own, around the
    # read-only root. An empty tmpfs at the same path keeps it from doing so.
    taken = {item.path for item in plan.tmpfs} | {bind.target for bind in plan.binds}
    access = "ro" if plan.read_only else "rw"
    options = f"{access},nosuid,nodev,noexec,size={plan.limits.memory}"
    plain = ("/" + posixpath.normpath(path).lstrip("/") for path in volumes)
    return {path: f"{options},uid={plan.uid},gid={plan.gid}" for path in plain if path not in taken}


def _docker_bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def _host_config(
    plan: ContainerPlan, *, cgroup_parent: str, gate: str, volumes: Iterable[str]
) -> dict[str, Any]:
    limits = plan.limits
    security = [f"seccomp={docker_seccomp(plan.capabilities)}"]
    if plan.no_new_privileges:
        security.insert(0, "no-new-privileges=true")
    tmpfs = {item.path: ",".join(["rw", *_tmpfs_options(plan, item)]) for item in _own_tmpfs(plan)}
    return {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": sorted(plan.capabilities),
        "SecurityOpt": security,
        "ReadonlyRootfs": plan.read_only,
        "Tmpfs": {**_volume_cover(plan, volumes), **tmpfs},
        "ShmSize": _shm(plan).size,
        "Mounts": [
            _docker_bind(gate, GATE_IN_CONTAINER, read_only=True),
            # What the guest mounts there is read-only itself where it has to be. Told so, docker
            # would mount it once more, and lose nosuid, nodev and noexec, which it cannot say.
            *(_docker_bind(item.source, item.target, read_only=False) for item in plan.binds),
            *(_docker_bind(i.source, i.target, read_only=True) for i in _network_files(plan)),
        ],
        "Memory": limits.memory,
        "MemorySwap": limits.memory,
        "CpuPeriod": CPU_PERIOD,
        "CpuQuota": cpu_quota(limits.cpus),
        "PidsLimit": limits.pids,
        "Ulimits": [
            {"Name": "nofile", "Soft": limits.files, "Hard": limits.files},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "OomScoreAdj": OOM_SCORE_ADJ,
        "CgroupParent": cgroup_parent,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Sysctls": dict(_SYSCTLS),
        "GroupAdd": [str(group) for group in plan.groups],
        "MaskedPaths": list(plan.masked_paths),
        "ReadonlyPaths": list(plan.readonly_paths),
        # The output goes to the streams that are attached, and nowhere else.
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "Init": False,
    }


def docker_create(
    plan: ContainerPlan,
    *,
    image_id: str,
    cgroup_parent: str,
    volumes: Iterable[str] = (),
    gate: str = GATE,
) -> dict[str, Any]:
    """The body of ``POST /containers/create`` for ``plan`` on the image ``image_id`` (the
    digest of its config), below the cgroup ``cgroup_parent``. ``volumes`` are those that the
    image declares.

    Raises :class:`UsageError` for capabilities of a user other than root, which docker's API
    cannot grant: it has no ambient set, so they would be lost at the first execve.
    """
    if plan.capabilities and plan.uid != 0:
        raise UsageError(
            f"engine docker cannot give {', '.join(sorted(plan.capabilities))} to uid {plan.uid}",
            hint="use --engine crun, or run without --cap-add",
        )
    first, *rest = gate_argv(plan.argv)
    return {
        "Image": image_id,
        "Hostname": plan.hostname,
        "User": f"{plan.uid}:{plan.gid}",
        "Env": list(plan.env),
        "WorkingDir": plan.workdir,
        "Entrypoint": [first],
        "Cmd": rest,
        "Tty": plan.terminal,
        "OpenStdin": plan.interactive,
        "StdinOnce": plan.interactive,
        "AttachStdin": plan.interactive,
        "AttachStdout": True,
        "AttachStderr": not plan.terminal,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(plan, cgroup_parent=cgroup_parent, gate=gate, volumes=volumes),
    }
