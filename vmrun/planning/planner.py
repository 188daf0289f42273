"""From what was asked, what is there and what policy grants: the plan. Pure."""

from __future__ import annotations

import math
import posixpath
import re
from dataclasses import dataclass, replace

from vmrun.image.command import DEFAULT_PATH, resolve_command
from vmrun.image.user import User, resolve_user
from vmrun.model.base import Base
from vmrun.model.capability import normalise_capability
from vmrun.model.errors import Refused, UsageError
from vmrun.model.image import Image
from vmrun.model.network import NetworkPlan
from vmrun.model.plan import (
    Accelerator,
    ContainerPlan,
    GuestPlan,
    HostFacts,
    MemoryPlan,
    Plan,
    Tmpfs,
)
from vmrun.model.quantity import MIB, format_size
from vmrun.model.storage import Disk
from vmrun.model.workload import Workload
from vmrun.planning.data import (
    NOTHING_STORED,
    StorageFacts,
    check_shared,
    plan_binds,
    plan_disks,
)
from vmrun.planning.kernel_arguments import kernel_arguments
from vmrun.planning.memory import plan_memory, plan_shared_memory
from vmrun.planning.network import plan_network
from vmrun.planning.storage import check_storage
from vmrun.policy.egress import proxy_environment
from vmrun.policy.profiles import (
    MASKED_PATHS,
    NON_ROOT_UID,
    READONLY_PATHS,
    Profile,
)

LEASE = 60
"""Seconds until a guest that nobody renews powers itself off."""

SSH_PORTS = 2
"""One connection runs the workload; one is free for a second look at the same guest."""

TENANT_SSH_PORTS = 4
"""Those of a tenant's guest, whose containers are spread over them."""

_BOOT_DEADLINE = {Accelerator.KVM: 30.0, Accelerator.TCG: 180.0}
_STICKY = 0o1777
_TMP = "/tmp"  # noqa: S108 - the container's, not ours
_TMP_SIZE = 64 * MIB
_MINIMUM_MEMORY = 16 * MIB
_HOSTNAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_QEMU_UID_FIRST = 2_000_000_000


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What is drawn for each run: ``run_id`` 12 hex digits, ``uuid`` RFC 4122, ``slot`` a small
    number that no other guest of this host holds."""

    run_id: str
    uuid: str
    slot: int


def make_plan(
    workload: Workload,
    *,
    image: Image,
    base: Base,
    host: HostFacts,
    profile: Profile,
    identity: RunIdentity,
    stored: StorageFacts = NOTHING_STORED,
    network: NetworkPlan | None = None,
    guest: GuestPlan | None = None,
) -> Plan:
    """Decide everything of a run; ``stored`` is what the host says of its data, ``network`` the
    container's place on a network that it shares, ``guest`` one that lives and that it is to share.
    Raises :class:`UsageError`, :class:`StateError`, :class:`Refused` or one of the image's errors
    (no such command, no such user) for what cannot be run."""
    _check_limits(workload, host)
    if guest is not None:
        check_shared(workload.storage, guest.disks, workload.tenant)
    user, mapped = _user(workload, image, profile)
    wire = plan_network(workload, identity.run_id, network)
    shared = guest is not None
    container = _container(workload, image, profile, user, mapped, identity, wire, shared=shared)
    if guest is None:
        guest = _own_guest(workload, image, base, host, identity, stored)
    else:
        guest = replace(guest, memory=_share(workload, image, base, stored, guest.memory))
    return Plan(
        run_id=identity.run_id,
        workload=workload,
        image=image,
        base=base,
        host=host,
        guest=guest,
        container=container,
        warnings=tuple(_warnings(workload, host, container)),
    )


def _own_guest(
    workload: Workload,
    image: Image,
    base: Base,
    host: HostFacts,
    identity: RunIdentity,
    stored: StorageFacts,
) -> GuestPlan:
    disks = plan_disks(workload.storage, uuid=identity.uuid, directory=stored.directory)
    memory = plan_memory(
        workload=workload.limits.memory,
        unpacked=image.tree.unpacked_bytes,
        blobs=[layer.blob.size for layer in image.layers],
        flavour=base.flavour,
        accelerator=host.accelerator,
        data=stored.copied + stored.secret,
        disks=len(disks),
    )
    check_room(memory, host)
    return plan_guest(base, host, memory, identity, cpus=workload.limits.cpus, disks=disks)


def check_room(memory: MemoryPlan, host: HostFacts) -> None:
    """Refuse a guest for which the host has no memory now."""
    if memory.guest > host.memory:
        raise Refused(
            f"the guest needs {format_size(memory.guest)}, this host has "
            f"{format_size(host.memory)} available",
            hint="ask for less with --memory, or run fewer guests",
        )


def _share(
    workload: Workload, image: Image, base: Base, stored: StorageFacts, guest: MemoryPlan
) -> MemoryPlan:
    return plan_shared_memory(
        guest,
        workload=workload.limits.memory,
        unpacked=image.tree.unpacked_bytes,
        blobs=[layer.blob.size for layer in image.layers],
        flavour=base.flavour,
        data=stored.copied + stored.secret,
    )


def plan_guest(
    base: Base,
    host: HostFacts,
    memory: MemoryPlan,
    identity: RunIdentity,
    *,
    cpus: float,
    disks: tuple[Disk, ...] = (),
    ssh_ports: int = SSH_PORTS,
) -> GuestPlan:
    """The guest for one run, or for those of a tenant."""
    qemu_uid, qemu_gid = _qemu_user(host, identity.slot)
    return GuestPlan(
        name=f"vmrun-{identity.run_id}",
        uuid=identity.uuid,
        vcpus=max(1, math.ceil(cpus)),
        memory=memory,
        accelerator=host.accelerator,
        cpu_model="host-passthrough" if host.accelerator is Accelerator.KVM else "maximum",
        kernel_arguments=kernel_arguments(base.verity, lease=LEASE),
        ssh_ports=ssh_ports,
        lease=LEASE,
        boot_deadline=_BOOT_DEADLINE[host.accelerator],
        qemu_uid=qemu_uid,
        qemu_gid=qemu_gid,
        limit_host_memory=host.memory_cgroup,
        disks=disks,
    )


def _qemu_user(host: HostFacts, slot: int) -> tuple[int | None, int | None]:
    """A uid of its own for each guest; a daemon's own user; or the caller, who has only one."""
    if host.daemon_user is not None:
        return host.daemon_user
    if not host.privileged:
        return None, None
    uid = _QEMU_UID_FIRST + slot
    if host.accelerator is Accelerator.KVM and host.kvm_gid is not None:
        return uid, host.kvm_gid
    return uid, uid


def _check_limits(workload: Workload, host: HostFacts) -> None:
    limits = workload.limits
    if limits.memory < _MINIMUM_MEMORY:
        raise UsageError(
            f"--memory {format_size(limits.memory)} is too little",
            hint=f"at least {format_size(_MINIMUM_MEMORY)}",
        )
    if not 0 < limits.cpus <= host.cpus:
        raise UsageError(
            f"--cpus {limits.cpus:g} is not possible on this host",
            hint=f"more than 0, at most {host.cpus}",
        )
    if limits.pids < 1:
        raise UsageError("--pids-limit must be at least 1", hint="the default is 128")


def _user(workload: Workload, image: Image, profile: Profile) -> tuple[User, bool]:
    """Who runs it, and whether root was asked for and is mapped to an unprivileged uid."""
    user = resolve_user(
        workload.user if workload.user is not None else image.config.user, image.tree
    )
    if user.uid != 0 or profile.allow_root:
        if user.gid == 0 and not profile.allow_root:
            return User(user.uid, user.uid, _without_root(user.groups), user.name, user.home), False
        return User(user.uid, user.gid, _allowed(user.groups, profile), user.name, user.home), False
    if workload.user is not None:
        raise Refused(
            f"profile {profile.name} never runs root (--user {workload.user})",
            hint="leave --user out (root is mapped to an unprivileged uid), or name another user",
        )
    return User(NON_ROOT_UID, NON_ROOT_UID, (), "", user.home), True


def _allowed(groups: tuple[int, ...], profile: Profile) -> tuple[int, ...]:
    return groups if profile.allow_root else _without_root(groups)


def _without_root(groups: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(group for group in groups if group != 0)


def _container(
    workload: Workload,
    image: Image,
    profile: Profile,
    user: User,
    mapped: bool,
    identity: RunIdentity,
    wire: NetworkPlan | None,
    *,
    shared: bool,
) -> ContainerPlan:
    hostname = workload.hostname or workload.name or identity.run_id
    if _HOSTNAME.fullmatch(hostname) is None:
        raise UsageError(
            f"not a host name: {hostname!r}", hint="letters, digits and hyphens, at most 63"
        )
    env = _environment(workload, image, user, hostname, wire)
    workdir = workload.workdir or image.config.working_dir or "/"
    if not workdir.startswith("/"):
        raise UsageError(f"--workdir must be absolute: {workdir!r}", hint="begin it with /")
    command = resolve_command(
        image.config,
        image.tree,
        workload.command,
        entrypoint=None if workload.entrypoint is None else (workload.entrypoint,),
        env=env,
        working_dir=workdir,
    )
    added = {normalise_capability(name) for name in workload.cap_add}
    check_storage(workload.storage, [_mount_point(mount.path) for mount in workload.tmpfs])
    binds = plan_binds(workload.storage, identity.run_id, shared=shared)
    return ContainerPlan(
        argv=command.argv,
        env=env,
        workdir=workdir,
        hostname=hostname,
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        user_asked=workload.user if workload.user is not None else image.config.user or "root",
        user_mapped=mapped,
        read_only=workload.read_only is not False,
        capabilities=tuple(sorted(profile.capabilities | added)),
        no_new_privileges=True,
        limits=workload.limits,
        tmpfs=_tmpfs(workload, image, {bind.target for bind in binds}),
        terminal=workload.terminal,
        interactive=workload.interactive,
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        binds=binds,
        network=wire,
    )


def _environment(
    workload: Workload, image: Image, user: User, hostname: str, wire: NetworkPlan | None
) -> tuple[str, ...]:
    """The image's, then the user's on top; PATH, HOME and HOSTNAME as docker sets them, and where
    the proxy is, for one that may reach anything."""
    values: dict[str, str] = {"PATH": DEFAULT_PATH}
    for setting in image.config.env:
        key, _, value = setting.partition("=")
        values[key] = value
    values.setdefault("HOME", user.home)
    values.setdefault("HOSTNAME", hostname)
    if workload.terminal:
        values.setdefault("TERM", "xterm-256color")
    if wire is not None and wire.allow:
        values.update(proxy_environment(wire.gateway, (name for name, _ in wire.names)))
    values.update(workload.env)
    return tuple(f"{key}={value}" for key, value in values.items())


def _tmpfs(workload: Workload, image: Image, bound: set[str]) -> tuple[Tmpfs, ...]:
    """The usual one, the image's volumes (it expects to write there), what was asked for; none
    where something else is ``bound``."""
    size = min(_TMP_SIZE, workload.limits.memory // 2)
    mounts = {_TMP: Tmpfs(_TMP, size, _STICKY, False)}
    for volume in image.config.volumes:
        if path := _mount_point(volume):
            mounts[path] = Tmpfs(path, size, _STICKY, False)
    for mount in workload.tmpfs:
        path = _mount_point(mount.path)
        if not path:
            raise UsageError(
                f"--tmpfs: not a path inside the container: {mount.path!r}",
                hint="absolute, below /, without '..'",
            )
        mounts[path] = Tmpfs(
            path, size if mount.size is None else mount.size, _STICKY, mount.executable
        )
    return tuple(mount for path, mount in mounts.items() if path not in bound)


def _mount_point(path: str) -> str:
    """As the kernel will list it, without a trailing slash; empty if it cannot be one."""
    if not path.startswith("/") or ".." in path.split("/"):
        return ""
    plain = "/" + posixpath.normpath(path).lstrip("/")
    return "" if plain == "/" else plain


def _warnings(workload: Workload, host: HostFacts, container: ContainerPlan) -> list[str]:
    warnings = []
    if not host.accelerator.isolates:
        warnings.append(
            f"running under emulation, which is NOT a security boundary: {host.accelerator_reason}"
        )
    if container.user_mapped:
        warnings.append(
            f"the image asks for {container.user_asked or 'root'}; it runs as uid {container.uid}"
        )
    if not host.memory_cgroup:
        warnings.append("QEMU's own memory is not limited: libvirt has no memory cgroup here")
    if not container.read_only:
        warnings.append("the container's root is writable")
    return warnings
