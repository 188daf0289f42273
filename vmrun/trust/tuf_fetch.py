"""Where a catalogue's metadata comes from: a directory, an https server, or what is cached.

python-tuf's client asks for names (``timestamp.json``, ``3.targets.json``) and checks what it gets;
here it is only decided which bytes a name leads to, and whether there were any at all. All reads
happen on a thread of their own, so that neither a server that drips bytes nor a mount that hangs
can hold a run up for longer than :data:`DEADLINE`.
"""

from __future__ import annotations

import errno
import os
import posixpath
import queue
import re
import stat
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from vmrun.image.limits import ImageLimits
from vmrun.image.registry.options import RegistryOptions
from vmrun.model.errors import ImageError, SettingsError, VmrunError

BASE = "catalogue:/"
"""What stands before each name that the client asks for."""
LARGEST_TARGETS = 5_000_000
LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=16,
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=500_000,
    targets_max_length=LARGEST_TARGETS,
)
"""Sizes in bytes. A list of 20 000 names has about 3 MB."""
DEADLINE = 20.0
"""Seconds in which all metadata must have come."""
_LARGEST = LARGEST_TARGETS + 1
_CHUNK = 64 * 1024
_ABSENT = 404
_NAME = re.compile(r"[A-Za-z0-9%._~-]{1,255}")
_VERSION = re.compile(r"^[0-9]+\.")


class SourceUnreachable(DownloadError):
    """Nothing was heard from the source: what is cached may do instead, until it expires."""


class SourceDamaged(DownloadError):
    """The source answered with what cannot be metadata."""


class _Fetcher(FetcherInterface):
    """Gives the client whole files, all of them before one deadline."""

    def __init__(self, deadline: float) -> None:
        self._end = time.monotonic() + deadline

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """At most :data:`_LARGEST` bytes of the file of that name."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(BASE)
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise SourceDamaged(f"{name[:80]!r} cannot be the name of a file")
        data = _within(self._end - time.monotonic(), lambda: self._read(name))
        return (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))


def _within(seconds: float, read: Callable[[], bytes]) -> bytes:
    answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put(read())
        except Exception as error:  # whatever it is, it is raised where it was asked for
            answer.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = answer.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise SourceUnreachable(f"it did not answer within {DEADLINE:.0f} s") from None
    if isinstance(result, Exception):
        raise result
    return result


class DirectoryFetcher(_Fetcher):
    """Files that lie in a directory, local or mounted. No symbolic links are followed in it."""

    def __init__(self, directory: Path, deadline: float = DEADLINE) -> None:
        super().__init__(deadline)
        self._directory = directory

    def _read(self, name: str) -> bytes:
        try:
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceUnreachable(error.strerror or str(error)) from None
        try:
            return _read_at(folder, name)
        except FileNotFoundError:
            raise DownloadHTTPError(f"{name} does not exist", _ABSENT) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SourceDamaged(f"{name} is a symbolic link") from None
            raise SourceUnreachable(f"{name}: {error.strerror or error}") from None
        finally:
            os.close(folder)


def _read_at(folder: int, name: str) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceDamaged(f"{name} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_LARGEST)


class CacheFetcher(DirectoryFetcher):
    """What the client itself has kept: the newest of each role without a version in its name.
    There is never a newer root."""

    def _read(self, name: str) -> bytes:
        if name.endswith(".root.json"):
            raise DownloadHTTPError("no newer root is cached", _ABSENT)
        return super()._read(_VERSION.sub("", name))


class HttpsFetcher(_Fetcher):
    """Files below an https URL; http is for loopback addresses only."""

    def __init__(self, url: str, cert_dirs: tuple[Path, ...], deadline: float = DEADLINE) -> None:
        super().__init__(deadline)
        # Not loaded for directories: it takes a tenth of a second.
        from vmrun.image.registry.transport import Transport

        parts = urlsplit(url)
        options = RegistryOptions(plain_http=parts.scheme == "http", cert_dirs=cert_dirs)
        self._transport = Transport(parts.netloc, parts.netloc, options, ImageLimits())
        self._path = parts.path.rstrip("/")

    def _read(self, name: str) -> bytes:
        from vmrun.image.registry.transport import Request

        parts, size = [], 0
        try:
            with self._transport.send(Request("GET", f"{self._path}/{name}")) as response:
                if response.status != 200:
                    raise DownloadHTTPError(f"{name}: status {response.status}", response.status)
                while size < _LARGEST and (data := response.read(_CHUNK)):
                    parts.append(data)
                    size += len(data)
        except ImageError as error:
            raise SourceUnreachable(error.message) from None
        return b"".join(parts)


def open_source(
    source: str, cert_dirs: tuple[Path, ...] = (), *, deadline: float = DEADLINE
) -> FetcherInterface:
    """The fetcher for ``source``, an absolute directory or an https URL. Nothing is read yet.

    Raises :class:`SettingsError` for anything else.
    """
    if posixpath.isabs(source):
        return DirectoryFetcher(Path(source), deadline)
    try:
        parts = urlsplit(source)
        usable = parts.scheme in ("https", "http") and bool(parts.hostname)
        usable = usable and not (parts.query or parts.fragment or "@" in parts.netloc)
        usable = usable and parts.port != 0  # raises ValueError for a port that is none
    except ValueError:
        usable = False
    if not usable or not source.isprintable():
        raise SettingsError(
            f"catalogue {source[:200]!r} is neither an absolute directory nor an https URL",
            hint="name one in the trust rules",
        )
    try:
        return HttpsFetcher(source, cert_dirs, deadline)
    except VmrunError as error:
        raise SettingsError(
            f"catalogue {source[:200]}: {_first(error)}",
            hint="use https; its CA may lie in certs.d, as for a registry",
        ) from None


def _first(error: VmrunError) -> str:
    if error.message.startswith("--plain-http"):
        return "http is for loopback addresses only"
    return error.message
