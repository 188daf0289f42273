"""Named volumes of each tenant: ``<tenant>/<name>/`` with ``volume.json``, ``disk.qcow2`` and the
lock of whoever uses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vmrun.host.lock import exclusive
from vmrun.model.errors import StateError
from vmrun.model.storage import Volume
from vmrun.model.tenant import DEFAULT_TENANT
from vmrun.volume.description import as_json, parse_description
from vmrun.volume.luks import create_disk, in_use
from vmrun.volume.passphrase import read_passphrase, split_command
from vmrun.volume.undumped import leave_no_core_dump

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_PARTIAL = ".partial-"
_DISK, _DESCRIPTION, _LOCK = "disk.qcow2", "volume.json", "lock"
_LONGEST_HOLDER = 64
_LONGEST_DESCRIPTION = 64 << 10


class VolumeStore:
    """The volumes of one tenant, below ``directory`` (that of all tenants). A name leads to this
    tenant's volumes and no other's."""

    def __init__(self, directory: Path, tenant: str) -> None:
        self.tenant = _named(tenant, "tenant")
        self._directory = directory / self.tenant

    def create(
        self,
        name: str,
        size: int,
        *,
        passphrase_file: Path | None = None,
        passphrase_command: str = "",
        note: Callable[[str], None] = lambda _text: None,
    ) -> Volume:
        """Make an encrypted volume of ``size`` bytes. Raises :class:`StateError` when there is one
        of that name or it cannot be made."""
        path = self._directory / _named(name, "volume")
        if (passphrase_file is None) == (not passphrase_command):
            raise StateError(
                f"volume {name!r} needs one place where its passphrase comes from",
                hint="give --passphrase-file or --passphrase-command",
            )
        if passphrase_command:
            split_command(passphrase_command)
        self._must_be_new(path)
        leave_no_core_dump()
        passphrase = read_passphrase(passphrase_file, passphrase_command, note=note)
        with _explained(path), self._writing():
            self._must_be_new(path)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._directory))
            try:
                volume = Volume(
                    name=name,
                    tenant=self.tenant,
                    size=size,
                    path=path,
                    created=time.time(),
                    passphrase_file=passphrase_file,
                    passphrase_command=passphrase_command,
                )
                create_disk(partial / _DISK, size, passphrase)
                _write(partial / _LOCK, b"")
                _write(partial / _DESCRIPTION, as_json(volume))
                _sync(partial)
                partial.rename(path)
                _sync(self._directory)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        return volume

    def list(self) -> tuple[Volume, ...]:
        """All of the tenant's, by name. Raises :class:`StateError` for one that cannot be read."""
        with _explained(self._directory):
            if not self._directory.is_dir():
                return ()
            names = sorted(path.name for path in self._directory.iterdir() if path.is_dir())
        return tuple(self.get(name) for name in names if not name.startswith("."))

    def get(self, name: str) -> Volume:
        """A volume, and who uses it. Raises :class:`StateError` if there is none."""
        path = self._directory / _named(name, "volume")
        with _explained(path):
            try:
                with (path / _DESCRIPTION).open("rb") as file:
                    text = file.read(_LONGEST_DESCRIPTION + 1)
            except FileNotFoundError:
                raise StateError(
                    f"tenant {self.tenant!r} has no volume {name!r}",
                    hint=f"create it: {create_words(name, self.tenant)}",
                ) from None
            volume = parse_description(text, name=name, tenant=self.tenant, path=path)
            return replace(volume, in_use_by=self._holder(path))

    def remove(self, name: str) -> Volume:
        """Delete a volume and what is in it. Raises :class:`StateError` while it is in use."""
        volume = self.get(name)
        with _explained(volume.path), self._writing(), HeldVolume.take(volume, "removal"):
            doomed = self._directory / f"{_PARTIAL}{os.urandom(6).hex()}"
            volume.path.rename(doomed)
            shutil.rmtree(doomed)
            _sync(self._directory)
        return volume

    @staticmethod
    def _must_be_new(path: Path) -> None:
        with _explained(path):
            if path.exists():
                raise StateError(
                    f"there is a volume {path.name!r} already", hint="see 'vmrun volume ls'"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time; what a killed one left is removed."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory.parent.chmod(0o700)
        self._directory.chmod(0o700)
        with exclusive(self._directory / ".lock"):
            for left in self._directory.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    @staticmethod
    def _holder(path: Path) -> str:
        try:
            lock = _lock(path, fcntl.LOCK_SH)
        except BlockingIOError:
            with (path / _LOCK).open("rb") as file:
                return _printable(file.read(_LONGEST_HOLDER)) or "another process"
        os.close(lock)
        return ""


class HeldVolume:
    """A volume that this process uses until :meth:`release`; nobody else can meanwhile, be it for
    a guest or to remove it."""

    def __init__(self, volume: Volume, lock: int) -> None:
        self.volume = volume
        self._lock = lock

    @classmethod
    def take(cls, volume: Volume, holder: str) -> HeldVolume:
        """Take it for ``holder``, a run id. Raises :class:`StateError` when it is in use, by
        another process or by a guest that outlived its own."""
        with _explained(volume.path):
            try:
                lock = _lock(volume.path, fcntl.LOCK_EX)
            except BlockingIOError:
                raise _busy(volume, VolumeStore._holder(volume.path)) from None
            try:
                if in_use(volume.path / _DISK):
                    raise _busy(volume, "a guest whose command has ended")
                os.ftruncate(lock, 0)
                os.pwrite(lock, holder.encode()[:_LONGEST_HOLDER], 0)
            except BaseException:
                os.close(lock)
                raise
        return cls(volume, lock)

    @property
    def disk(self) -> Path:
        """Its file."""
        return self.volume.path / _DISK

    def lend(self, path: Path, owner: tuple[int, int] | None) -> None:
        """Give the disk the second name ``path``, for a QEMU that runs as ``owner`` and cannot
        walk to where volumes are. Raises :class:`StateError`."""
        with _explained(path):
            path.unlink(missing_ok=True)
            os.link(self.disk, path, follow_symlinks=False)
            if owner is not None:
                os.chown(path, *owner, follow_symlinks=False)

    def release(self) -> bool:
        """Take the disk back and let others use it; whether it is ours alone again."""
        if self._lock < 0:
            return True
        try:
            os.chown(self.disk, os.geteuid(), os.getegid(), follow_symlinks=False)
            os.ftruncate(self._lock, 0)
            return os.stat(self.disk).st_nlink == 1
        except OSError:
            return False
        finally:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> HeldVolume:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def create_words(name: str, tenant: str) -> str:
    """The command that makes a volume."""
    whose = "" if tenant == DEFAULT_TENANT else f" --tenant {tenant}"
    return f"vmrun volume create {name}{whose} --size 1g --passphrase-file FILE"


def _busy(volume: Volume, holder: str) -> StateError:
    by = holder or "another process"
    return StateError(
        f"volume {volume.name!r} is in use by {by}",
        hint="one guest at a time: end that run, or its tenant's guest, or wait for its end",
    )


def _named(name: str, what: str) -> str:
    # It becomes a directory: nothing in it may lead elsewhere.
    if _NAME.fullmatch(name) is None:
        raise StateError(
            f"not a {what}'s name: {name[:80]!r}",
            hint="letters, digits, '_', '.' and '-', at most 63, a letter or digit first",
        )
    return name


def _lock(path: Path, kind: int) -> int:
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _printable(data: bytes) -> str:
    return "".join(c for c in data.decode("ascii", "replace") if c.isprintable())


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot use {path}: {error.strerror or error}",
            hint="check who may write there, and the room that is left",
        ) from error
