"""Data as it is asked for on a command line: ``--volume``, ``--secret`` and ``--scratch``. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from vmrun.model.errors import UsageError
from vmrun.model.quantity import MIB, format_size, parse_size
from vmrun.model.storage import HostDirectory, NamedVolume, Secret, Storage

SECRETS_TARGET = "/run/secrets"
"""Where the container finds its secrets, as with docker and podman."""

SCRATCH_TARGET = "/scratch"
SMALLEST_DISK = 16 * MIB
"""Below that ext4 and the key slots leave no room worth having."""

LARGEST_DISK = 16 << 40
MAX_DISKS = 16
MAX_DIRECTORIES = 64
MAX_SECRETS = 128

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_SECRET_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,255}")
_LONGEST_TARGET = 1024
_KERNELS = ("/proc", "/sys", "/dev")
_GATE = "/.vmrun-gate"
_OPTIONS = ("ro", "rw", "exec", "noexec", "nosuid", "nodev")


def parse_volume(text: str, *, here: Path) -> HostDirectory | NamedVolume:
    """``SOURCE:TARGET[:ro|rw][,exec]``. A SOURCE with a slash or a leading dot is a directory or
    file of the host, relative to ``here``, and read-only by default; any other is the name of a
    volume, which is read-write by default. Raises :class:`UsageError`."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not source or not target or ":" in words:
        raise _wrong("--volume", text, "write SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw")
    target = parse_target(target, option="--volume", asked=text)
    read_only, executable = _access(words, text)
    if "/" in source or source.startswith("."):
        if not source.isprintable():
            raise _wrong("--volume", text, "the path has characters that cannot be shown")
        directory = here / source
        return HostDirectory(
            directory, target, read_only=read_only is not False, executable=executable
        )
    name = parse_volume_name(source, option="--volume", asked=text)
    return NamedVolume(name, target, read_only=read_only is True, executable=executable)


def _access(words: str, text: str) -> tuple[bool | None, bool]:
    """Whether it is read-only (None: not said) and whether it is executable."""
    chosen = [word for word in words.split(",") if word]
    for word in chosen:
        if word not in _OPTIONS:
            raise _wrong("--volume", text, f"unknown option {word!r}; known: ro, rw, exec")
    if "ro" in chosen and "rw" in chosen:
        raise _wrong("--volume", text, "either ro or rw")
    read_only = True if "ro" in chosen else False if "rw" in chosen else None
    return read_only, "exec" in chosen and "noexec" not in chosen


def parse_volume_name(text: str, *, option: str, asked: str = "") -> str:
    """The name of a volume; ``asked`` is all of what was typed. Raises :class:`UsageError`."""
    if _VOLUME_NAME.fullmatch(text) is None:
        raise _wrong(
            option,
            asked or text,
            "a volume's name has letters, digits, '_', '.' and '-', at most 63; "
            "a directory of the host needs a slash: ./NAME",
        )
    return text


def parse_secret(text: str, *, here: Path) -> Secret:
    """``id=NAME[,src=FILE|env=VAR]``, in docker's manner, or ``NAME=FILE``. Without a source it is
    the environment variable NAME. Raises :class:`UsageError`."""
    if not text.isprintable():
        raise _wrong("--secret", text, "it has characters that cannot be shown")
    if not re.match(r"(id|src|source|env|type|target)=", text):
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise _wrong("--secret", text, "write NAME=FILE, id=NAME,src=FILE or id=NAME,env=VAR")
        return Secret(_secret_name(name, text), source=here / file)
    fields: dict[str, str] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        key = {"source": "src"}.get(key, key)
        if key not in ("id", "src", "env") or not equals or not value or key in fields:
            raise _wrong("--secret", text, "write id=NAME,src=FILE or id=NAME,env=VAR")
        fields[key] = value
    name = _secret_name(fields.get("id", ""), text)
    if "src" in fields and "env" in fields:
        raise _wrong("--secret", text, "either src=FILE or env=VAR")
    if "src" in fields:
        return Secret(name, source=here / fields["src"])
    variable = fields.get("env", name)
    if _VARIABLE.fullmatch(variable) is None:
        raise _wrong("--secret", text, f"{variable!r} is no environment variable: add src=FILE")
    return Secret(name, variable=variable)


def _secret_name(name: str, text: str) -> str:
    if _SECRET_NAME.fullmatch(name) is None:
        raise _wrong(
            "--secret", text, "a secret's name has letters, digits, '_', '.' and '-', at most 64"
        )
    return name


def parse_scratch(text: str) -> tuple[int, str]:
    """``SIZE[:TARGET]``: bytes and where. Raises :class:`UsageError`."""
    size, colon, target = text.partition(":")
    where = parse_target(target, option="--scratch", asked=text) if colon else SCRATCH_TARGET
    return parse_disk_size(size, option="--scratch"), where


def parse_disk_size(text: str, *, option: str) -> int:
    """Bytes of an encrypted disk, within what can be made. Raises :class:`UsageError`."""
    size = parse_size(text, option=option)
    if not SMALLEST_DISK <= size <= LARGEST_DISK:
        raise UsageError(
            f"{option}: {text!r} is not a size for a disk",
            hint=f"from {format_size(SMALLEST_DISK)} to {format_size(LARGEST_DISK)}",
        )
    return size


def parse_target(text: str, *, option: str, asked: str = "") -> str:
    """A mount point in the container, as the kernel will list it; ``asked`` is all of what was
    typed. Raises :class:`UsageError`."""
    asked = asked or text
    if not text.startswith("/") or ".." in text.split("/") or not text.isprintable():
        raise _wrong(option, asked, "the place in the container is an absolute path without '..'")
    target = "/" + posixpath.normpath(text).lstrip("/")
    if len(target.encode("utf-8", "surrogateescape")) > _LONGEST_TARGET:
        raise _wrong(option, asked, f"at most {_LONGEST_TARGET} bytes")
    if target == "/" or target == _GATE or _below(target, _KERNELS) or _below(target, (_GATE,)):
        raise _wrong(option, asked, "not the root, nor anything of /proc, /sys or /dev")
    return target


def make_storage(
    volumes: Iterable[str],
    secrets: Iterable[str],
    scratch: str | None,
    *,
    here: Path,
) -> Storage:
    """All data that a workload asks for. Raises :class:`UsageError` for what does not parse and
    for two things at one place."""
    parsed = [parse_volume(text, here=here) for text in volumes]
    size, target = (None, SCRATCH_TARGET) if scratch is None else parse_scratch(scratch)
    storage = Storage(
        directories=tuple(item for item in parsed if isinstance(item, HostDirectory)),
        volumes=tuple(item for item in parsed if isinstance(item, NamedVolume)),
        secrets=tuple(parse_secret(text, here=here) for text in secrets),
        scratch=size,
        scratch_target=target,
    )
    check_storage(storage)
    return storage


def check_storage(storage: Storage, tmpfs: Sequence[str] = ()) -> None:
    """That each thing has a place and a name of its own, and that there are not too many.
    ``tmpfs`` are mount points that were asked for otherwise. Raises :class:`UsageError`."""
    names = [secret.name for secret in storage.secrets]
    if repeated := _repeated(names):
        raise UsageError(f"--secret: two have the name {repeated!r}", hint="name each once")
    if repeated := _repeated([volume.name for volume in storage.volumes]):
        raise UsageError(
            f"--volume: the volume {repeated!r} is given twice", hint="mount it once, or its parent"
        )
    asked = [*targets(storage), *tmpfs]
    if repeated := _repeated(asked):
        raise UsageError(f"two mounts at {repeated}", hint="give each a place of its own")
    inside = [item for item in asked if item.startswith(f"{SECRETS_TARGET}/")]
    if storage.secrets and inside:
        raise UsageError(
            f"nothing can be mounted at {inside[0]}: {SECRETS_TARGET} holds the secrets",
            hint="choose another place",
        )
    disks = len(storage.volumes) + (storage.scratch is not None)
    for what, count, most in (
        ("volumes and scratch disks", disks, MAX_DISKS),
        ("host directories", len(storage.directories), MAX_DIRECTORIES),
        ("secrets", len(names), MAX_SECRETS),
    ):
        if count > most:
            raise UsageError(f"{count} {what} are too many", hint=f"at most {most}")


def targets(storage: Storage) -> tuple[str, ...]:
    """Every mount point that the storage brings."""
    return (
        *(item.target for item in storage.directories),
        *(item.target for item in storage.volumes),
        *([storage.scratch_target] if storage.scratch is not None else []),
        *([SECRETS_TARGET] if storage.secrets else []),
    )


def _repeated(names: Iterable[str]) -> str:
    return next((one for one, other in pairwise(sorted(names)) if one == other), "")


def _below(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def _wrong(option: str, text: str, hint: str) -> UsageError:
    return UsageError(f"{option}: cannot use {text[:200]!r}", hint=hint)
