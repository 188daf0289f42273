"""The tenants of this host: ``<name>/tenant.json`` in a directory that only its owner may enter,
beside what is kept of each tenant's images."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vmrun.host.lock import exclusive
from vmrun.model.errors import StateError
from vmrun.model.tenant import RESERVED, Tenant, checked_tenant
from vmrun.model.wire import dumps, loads

_FILE = "tenant.json"
_LOCK = ".lock"
_PARTIAL = ".partial-"
_LARGEST = 64 << 10
_MOST_CPUS = 1 << 16


class TenantStore:
    """The tenants below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold what makes looking at a tenant's guests and adding to them one step; for as short
        a time as that takes. Raises :class:`StateError`."""
        with contextlib.ExitStack() as stack:
            with _explained(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._directory.chmod(0o700)
                stack.enter_context(exclusive(self._directory / _LOCK))
            yield

    def create(self, tenant: Tenant) -> None:
        """Write a new tenant down, whole or not at all. Raises :class:`StateError` when there is
        one of that name."""
        name = checked_tenant(tenant.name)
        if name in RESERVED:
            raise StateError(
                f"a tenant cannot be called {name!r}: that name is vmrun's", hint="choose another"
            )
        with self.locked(), _explained(self._directory):
            self._sweep()
            if (self._directory / name).exists():
                raise StateError(
                    f"there is a tenant {name!r} already", hint="see 'vmrun tenant ls'"
                )
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._directory))
            try:
                with (partial / _FILE).open("x") as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(dumps(tenant))
                    file.flush()
                    os.fsync(file.fileno())
                partial.rename(self._directory / name)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            _sync(self._directory)

    def get(self, name: str) -> Tenant:
        """The tenant of that name. Raises :class:`StateError` when there is none, or its file is
        damaged, :class:`UsageError` for what no tenant can be called."""
        path = self._directory / checked_tenant(name) / _FILE
        with _explained(path):
            try:
                with path.open("rb") as file:
                    text = file.read(_LARGEST + 1)
            except (FileNotFoundError, NotADirectoryError):
                raise StateError(
                    f"there is no tenant {name!r}", hint=f"create it: vmrun tenant create {name}"
                ) from None
        if len(text) > _LARGEST:
            raise _damaged(path, name, "it is too large")
        try:
            tenant = loads(Tenant, text)
        except StateError as error:
            raise _damaged(path, name, error.message) from None
        if tenant.name != name:
            raise _damaged(path, name, f"it is that of {tenant.name[:80]!r}")
        quota = tenant.quota
        if (
            not 0 < quota.cpus <= _MOST_CPUS
            or quota.memory <= 0
            or quota.guests < 1
            or quota.disk < 0
        ):
            raise _damaged(path, name, "its quota is none")
        return tenant

    def all(self) -> tuple[Tenant, ...]:
        """Every tenant, by name. Raises :class:`StateError` for one that cannot be read."""
        with _explained(self._directory):
            try:
                names = sorted(path.name for path in self._directory.iterdir() if path.is_dir())
            except FileNotFoundError:
                return ()
        return tuple(self.get(name) for name in names if not name.startswith("."))

    def exists(self, name: str) -> bool:
        """Whether there is a tenant of that name, be its file readable or not."""
        return (self._directory / checked_tenant(name)).is_dir()

    def remove(self, name: str) -> bool:
        """Remove a tenant and what is kept of its images; whether all of it is gone. To be called
        with :meth:`locked`. Raises :class:`StateError`."""
        path = self._directory / checked_tenant(name)
        with _explained(path):
            doomed = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._directory))
            if path.exists():
                path.rename(doomed / name)
            shutil.rmtree(doomed, ignore_errors=True)
            _sync(self._directory)
        return not path.exists() and not doomed.exists()

    def _sweep(self) -> None:
        """What killed commands have left."""
        for left in self._directory.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)


def _damaged(path: Path, name: str, why: str) -> StateError:
    return StateError(
        f"{path} is damaged: {why}", hint=f"remove the tenant: vmrun tenant rm --force {name}"
    )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot use {path}: {error.strerror or error}",
            hint="check who may write there, and the room that is left",
        ) from error
