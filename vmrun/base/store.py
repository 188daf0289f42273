"""Bases on the host: finding, checking, installing and removing them.

A base lives in ``BASES/<hex of its digest>/``; ``BASES/<flavour>`` is a symbolic link to the
flavour's current one. A directory appears under its final name only when it is complete, so
readers need no lock; builders take one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmrun.base import manifest
from vmrun.model.base import Base, Flavour
from vmrun.model.digest import Digest
from vmrun.model.errors import BaseError

MANIFEST = "manifest.json"
_LOCK = ".lock"
_UNFINISHED = ".building-"
_DIRECTORY_NAME = re.compile(r"[0-9a-f]{64}")
_SELECTOR = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_CHUNK = 1 << 20


def list_bases(directories: Sequence[Path]) -> list[Base]:
    """All bases that have a readable manifest, one a digest, the first directory's first.

    Their files are not hashed; see :func:`verify_base`.
    """
    found: dict[Digest, Base] = {}
    for directory in directories:
        if not directory.is_dir():
            continue
        for path in sorted(directory.iterdir()):
            if _DIRECTORY_NAME.fullmatch(path.name):
                with contextlib.suppress(BaseError):
                    base = read_base(path)
                    found.setdefault(base.digest, base)
    return list(found.values())


def find_base(directories: Sequence[Path], selector: str) -> Base:
    """The base that ``selector`` names: a flavour, or a digest or at least 12 digits of it."""
    if selector in set(Flavour):
        return _current(directories, Flavour(selector))
    match = _SELECTOR.fullmatch(selector)
    if match is None:
        raise BaseError(
            f"not a base: {selector[:80]!r}",
            hint="name a flavour (minimal, docker) or at least 12 digits of a base's digest",
        )
    bases = [base for base in list_bases(directories) if base.digest.hex.startswith(match[1])]
    if len(bases) == 1:
        return bases[0]
    what = "several bases begin" if bases else "no base begins"
    raise BaseError(f"{what} with {match[1]}", hint="vmrun base list shows the digests")


def read_base(directory: Path) -> Base:
    """The base in a directory, by its manifest, which must hash to the directory's name."""
    data = _read_limited(directory / MANIFEST, manifest.MAX_MANIFEST_BYTES)
    base = manifest.parse(data, directory)
    if directory.name != base.digest.hex:
        raise BaseError(
            f"the manifest in {directory} hashes to {base.digest}",
            hint=_rebuild(base.flavour),
        )
    return base


def verify_base(base: Base) -> None:
    """Hash every file of ``base`` again; raises :class:`BaseError` at the first difference."""
    current = read_base(base.directory)
    if current.digest != base.digest:
        raise BaseError(f"the manifest of base {base.digest.short} has changed")
    for file in base.files.values():
        path = base.directory / file.name
        size, digest = _hash_file(path, file.size)
        if size != file.size or digest != file.digest:
            raise BaseError(
                f"{path} is not what the manifest of base {base.digest.short} says",
                hint=_rebuild(base.flavour),
                details=(
                    f"expected {file.digest}, {file.size} bytes\nfound    {digest}, {size} bytes"
                ),
            )


def remove_base(base: Base) -> None:
    """Remove a base, and the flavour's link if it is the current one.

    Raises :class:`BaseError` when it belongs to somebody else.
    """
    bases = base.directory.parent
    try:
        with _locked(bases):
            link = bases / base.flavour
            if link.is_symlink() and os.readlink(link) == base.directory.name:
                link.unlink()
            doomed = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=bases))
            base.directory.rename(doomed / "base")
            shutil.rmtree(doomed)
    except OSError as error:
        raise BaseError(
            f"cannot remove {base.directory}: {error.strerror}",
            hint="only who built a base can remove it",
        ) from error


@contextlib.contextmanager
def building(bases: Path) -> Iterator[Path]:
    """A workspace in ``bases`` for one builder at a time; what it leaves there is removed."""
    try:
        bases.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise BaseError(
            f"cannot create {bases}: {error.strerror}",
            hint="choose another directory for the bases, or run as root",
        ) from error
    with _locked(bases):
        for left_over in bases.glob(_UNFINISHED + "*"):
            shutil.rmtree(left_over, ignore_errors=True)
        workspace = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=bases))
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def install(finished: Path, bases: Path) -> Base:
    """Move a finished directory into ``bases`` and make it its flavour's current base.

    To be called inside :func:`building`, with a directory on the same file system.
    """
    data = (finished / MANIFEST).read_bytes()
    target = bases / Digest.of(data).hex
    manifest.parse(data, target)
    finished.chmod(0o755)
    for path in finished.iterdir():
        path.chmod(0o644)
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    finished.rename(target)
    base = read_base(target)
    link = finished.with_name("link")
    link.symlink_to(target.name)
    link.replace(bases / base.flavour)
    _sync(bases)
    return base


def hash_file(path: Path) -> tuple[int, Digest]:
    """Size and sha256 digest of a file."""
    return _hash_file(path, None)


def _hash_file(path: Path, limit: int | None) -> tuple[int, Digest]:
    """Size and digest of a regular file; reading stops once it is larger than ``limit``."""
    total, size = hashlib.sha256(), 0
    try:
        with _open_regular(path) as descriptor:
            while chunk := os.read(descriptor, _CHUNK):
                total.update(chunk)
                size += len(chunk)
                if limit is not None and size > limit:
                    break
    except OSError as error:
        raise BaseError(
            f"cannot read {path}: {error.strerror}", hint="vmrun base list shows what is there"
        ) from error
    return size, Digest("sha256", total.hexdigest())


def _read_limited(path: Path, limit: int) -> bytes:
    try:
        with _open_regular(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
            return stream.read(limit + 1)
    except OSError as error:
        raise BaseError(
            f"cannot read {path}: {error.strerror}",
            hint="vmrun base list shows the bases; vmrun base build makes one",
        ) from error


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BaseError(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _current(directories: Sequence[Path], flavour: Flavour) -> Base:
    for directory in directories:
        link = directory / flavour
        if link.is_symlink():
            name = os.readlink(link)
            if not _DIRECTORY_NAME.fullmatch(name):
                raise BaseError(f"{link} points to {name!r}, not a base", hint=_rebuild(flavour))
            base = read_base(directory / name)
            if base.flavour is not flavour:
                raise BaseError(f"{link} names a base of flavour {base.flavour}")
            return base
    raise BaseError(f"no {flavour} base is installed", hint=_rebuild(flavour))


def _rebuild(flavour: Flavour) -> str:
    return f"vmrun base build --flavour {flavour}"


@contextlib.contextmanager
def _locked(bases: Path) -> Iterator[None]:
    """Hold the builders' lock of a bases directory; waits for another builder to finish."""
    descriptor = os.open(bases / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
