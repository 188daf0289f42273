"""``volumes``, ``tmpfs``, ``shm_size`` and ``secrets`` of a service (05-services.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmrun.compose.context import Context
from vmrun.compose.field import Field
from vmrun.compose.model import ProjectVolume
from vmrun.compose.tmpfs import read_long_tmpfs, read_tmpfs
from vmrun.compose.values import is_long_name, mount_point, size
from vmrun.model.storage import HostDirectory, NamedVolume, Secret
from vmrun.model.workload import TmpfsMount

SHM = "/dev/shm"  # noqa: S108 - the container's, not ours
_MOST = 64
_SAY_MODE = (
    "a directory of the host is copied into the guest: write :ro, or :rw to have it copied back "
    "when the service has ended"
)
_LONG = frozenset({"type", "source", "target", "read_only", "bind", "volume", "tmpfs"})
_LONG_REFUSED = {
    "image": "an image is run, not mounted",
    "consistency": "it belongs to other platforms",
}
_KINDS = ("bind", "volume", "tmpfs")
_VOLUME_REFUSED = {
    "nocopy": "nothing is ever copied from the image into a volume; remove it",
    "subpath": "a volume is mounted as a whole",
    "labels": "see vmrun volume create",
}
_BIND_REFUSED = {
    "propagation": "the directory is copied, not shared",
    "recursive": "the directory is copied, not shared",
    "selinux": "the guest has no SELinux",
}
_MODES = {"ro": True, "rw": False}
_SECRET_REFUSED = dict.fromkeys(
    ("uid", "gid", "mode"), "a secret belongs to the container's user, with mode 0400"
)


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a service finds mounted."""

    directories: tuple[HostDirectory, ...] = ()
    volumes: tuple[NamedVolume, ...] = ()
    tmpfs: tuple[TmpfsMount, ...] = ()
    secrets: tuple[Secret, ...] = ()


def read_mounts(
    fields: Mapping[str, Field],
    context: Context,
    volumes: Mapping[str, ProjectVolume],
    secrets: Mapping[str, Secret],
) -> Mounts:
    """All of a service's; no two at the same path."""
    taken: dict[str, Field] = {}
    found: list[HostDirectory | NamedVolume | TmpfsMount] = []
    for item in fields["volumes"].items(_MOST) if "volumes" in fields else ():
        mount = _long(item, context, volumes) if item.is_mapping else _short(item, context, volumes)
        _claim(taken, mount.path if isinstance(mount, TmpfsMount) else mount.target, item)
        found.append(mount)
    for item in fields["tmpfs"].one_or_more(_MOST) if "tmpfs" in fields else ():
        tmpfs = read_tmpfs(item)
        _claim(taken, tmpfs.path, item)
        found.append(tmpfs)
    if "shm_size" in fields:
        _claim(taken, SHM, fields["shm_size"])
        found.append(TmpfsMount(SHM, size(fields["shm_size"])))
    return Mounts(
        directories=tuple(mount for mount in found if isinstance(mount, HostDirectory)),
        volumes=tuple(mount for mount in found if isinstance(mount, NamedVolume)),
        tmpfs=tuple(mount for mount in found if isinstance(mount, TmpfsMount)),
        secrets=_secrets(fields["secrets"], secrets) if "secrets" in fields else (),
    )


def _claim(taken: dict[str, Field], path: str, item: Field) -> None:
    if path in taken:
        raise item.wrong(f"{taken[path].path} is mounted at {path} as well", "remove one of them")
    taken[path] = item


def _short(
    item: Field, context: Context, volumes: Mapping[str, ProjectVolume]
) -> HostDirectory | NamedVolume:
    source, *rest = item.word().split(":")
    if not rest:
        raise item.wrong(
            f"an anonymous volume: {source[:80]!r}",
            "name a volume: NAME:PATH; or use tmpfs for what may be lost",
        )
    if len(rest) > 2 or not source or not rest[0]:
        raise item.wrong(
            f"not SOURCE:TARGET[:ro|rw]: {item.word()[:80]!r}",
            "SOURCE is a named volume, or a path that begins with . or /",
        )
    target = mount_point(item, rest[0])
    read_only, executable = _access(item, rest[1] if len(rest) == 2 else "")
    if _is_path(source):
        if read_only is None:
            raise item.wrong("does not say whether it may be written", _SAY_MODE)
        path = context.host_path(item.part(source))
        return HostDirectory(path, target, read_only, executable)
    return NamedVolume(_declared(item, source, volumes), target, bool(read_only), executable)


def _access(item: Field, options: str) -> tuple[bool | None, bool]:
    """Whether it is read-only (None: not said), and whether its programs can be executed."""
    read_only, executable = None, False
    for option in filter(None, options.split(",")):
        if option in _MODES and read_only is None:
            read_only = _MODES[option]
        elif option == "exec":
            executable = True
        else:
            raise item.wrong(
                f"access mode {options[:80]!r} is not supported", "write ro or rw, or ro,exec"
            )
    return read_only, executable


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~"))


def _declared(item: Field, key: str, volumes: Mapping[str, ProjectVolume]) -> str:
    if key not in volumes:
        raise item.wrong(
            f"there is no volume {key[:80]!r}",
            "declare it below 'volumes:' at the top level, or begin a path with ./",
        )
    return volumes[key].name


def _long(
    item: Field, context: Context, volumes: Mapping[str, ProjectVolume]
) -> HostDirectory | NamedVolume | TmpfsMount:
    fields = item.section(_LONG, _LONG_REFUSED)
    for key in ("type", "target"):
        if key not in fields:
            raise item.wrong(f"has no {key!r}", "type is bind, volume or tmpfs; target the path")
    kind = fields["type"].choice({kind: kind for kind in _KINDS})
    for other in _KINDS:
        if other != kind and other in fields:
            raise fields[other].wrong(f"options for another type than {kind}", "remove them")
    target = mount_point(fields["target"], fields["target"].word())
    if kind == "tmpfs":
        return read_long_tmpfs(fields, target)
    if "source" not in fields:
        raise item.wrong("has no 'source'", "name the volume, or the path of the host")
    read_only = fields["read_only"].boolean() if "read_only" in fields else None
    if kind == "bind":
        return _bind(item, fields, context, target, read_only)
    if "volume" in fields:
        fields["volume"].section((), _VOLUME_REFUSED)
    name = _declared(fields["source"], fields["source"].word(), volumes)
    return NamedVolume(name, target, bool(read_only))


def _bind(
    item: Field,
    fields: Mapping[str, Field],
    context: Context,
    target: str,
    read_only: bool | None,
) -> HostDirectory:
    if read_only is None:
        raise item.wrong(
            "does not say whether it may be written",
            _SAY_MODE.replace(":ro", "read_only: true").replace(":rw", "read_only: false"),
        )
    if "bind" in fields:
        options = fields["bind"].section(("create_host_path",), _BIND_REFUSED)
        if "create_host_path" in options and options["create_host_path"].boolean():
            raise options["create_host_path"].wrong(
                "not supported: vmrun makes no directories on the host", "make it first: mkdir -p"
            )
    return HostDirectory(context.host_path(fields["source"]), target, read_only)


def _secrets(field: Field, declared: Mapping[str, Secret]) -> tuple[Secret, ...]:
    found: dict[str, Secret] = {}
    for item in field.items(_MOST):
        source, target = item, item
        if item.is_mapping:
            fields = item.section(("source", "target"), _SECRET_REFUSED)
            if "source" not in fields:
                raise item.wrong("has no 'source'", "name a secret of the top level")
            source = fields["source"]
            target = fields.get("target", source)
        key, name = source.word(), target.word()
        if key not in declared:
            raise source.wrong(
                f"there is no secret {key[:80]!r}", "declare it below 'secrets:' at the top level"
            )
        if not is_long_name(name):
            raise target.wrong(
                f"not a file name: {name[:80]!r}", "secrets are files of /run/secrets: give a name"
            )
        if name in found:
            raise item.wrong(f"/run/secrets/{name} stands there twice", "remove one of them")
        found[name] = replace(declared[key], name=name)
    return tuple(found.values())
