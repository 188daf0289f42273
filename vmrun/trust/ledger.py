"""The ledger: for each name the newest signature that was ever accepted here.

Signatures do not expire, so an old image is still signed. Whoever can write to a registry could
bring back last year's, with last year's holes. The ledger only ever moves forward: a signature that
says it is older than the accepted one, of another digest, is a downgrade. It needs no other party,
and no more than the signer's own time, which is in what is signed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vmrun.image.document import parse_object
from vmrun.image.durable import locked_directory, replace_file
from vmrun.image.limits import ImageLimits
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, StateError

_LARGEST = 64 * 1024
_LATEST = 253402300799  # the last second of the year 9999
_SUFFIX = ".json"
_LIMITS = ImageLimits(document=_LARGEST)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The newest accepted signature of ``name``: of which digest, and when it was made (seconds
    since 1970, by the signer's clock)."""

    name: str
    digest: Digest
    signed_at: float


class Ledger:
    """One file per name in ``directory``, which only its owner may enter."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def newest(self, name: str) -> LedgerEntry | None:
        """What was accepted last; None for a name that is new. A ledger that cannot be read is
        a :class:`StateError`: it must not pass for one without history."""
        if not self._there():
            return None
        return self._read(self._path(name))

    def advance(self, entry: LedgerEntry) -> LedgerEntry:
        """Write ``entry`` down unless there is a newer one; what stands there then."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_directory(self._directory):
                before = self.newest(entry.name)
                if before is not None and before.signed_at >= entry.signed_at:
                    return before
                self._write(entry)
                return entry
        except OSError as error:
            raise self._unusable(error) from error

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All of it, by name."""
        if not self._there():
            return ()
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            raise self._unusable(error) from error
        found = [self._read(self._directory / name) for name in names if name.endswith(_SUFFIX)]
        return tuple(sorted((e for e in found if e is not None), key=lambda entry: entry.name))

    def forget(self, name: str) -> bool:
        """Remove a name, so that an older signature is accepted again; whether it was there."""
        try:
            with locked_directory(self._directory):
                self._path(name).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        return True

    def _there(self) -> bool:
        """Whether there is a ledger. One that others can write is none to rely on."""
        try:
            status = self._directory.stat()
        except FileNotFoundError:
            if self._directory.is_symlink():
                raise self._damaged("it links to nothing") from None
            return False
        except OSError as error:
            raise self._unusable(error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise self._damaged("it is not a directory")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._damaged("others can write there")
        return True

    def _path(self, name: str) -> Path:
        return self._directory / f"{hashlib.sha256(name.encode()).hexdigest()}{_SUFFIX}"

    def _read(self, path: Path) -> LedgerEntry | None:
        try:
            with open_regular(path, "ledger") as file, reading(f"ledger {path}"):
                data = read_exactly(file, _LARGEST + 1)
            document = parse_object(data, "the entry", _LIMITS)
            name, signed_at = document.text("name"), document.integer("signed_at")
            if path != self._path(name) or signed_at > _LATEST:
                raise ImageError("the entry is not as it was written")
            return LedgerEntry(name, Digest.parse(document.text("digest")), float(signed_at))
        except ImageNotFound:
            return None
        except ImageError as error:
            raise StateError(
                f"damaged ledger {str(path)!r}: {error.message}",
                hint=f"find out what happened to it; to start anew remove {path}",
            ) from None

    def _write(self, entry: LedgerEntry) -> None:
        text = json.dumps(
            {"name": entry.name, "digest": str(entry.digest), "signed_at": int(entry.signed_at)}
        )
        replace_file(self._path(entry.name), text.encode())

    def _damaged(self, why: str) -> StateError:
        return StateError(
            f"damaged ledger {str(self._directory)!r}: {why}",
            hint=f"find out what happened to it; to start anew remove {self._directory}",
        )

    def _unusable(self, error: OSError) -> StateError:
        return StateError(
            f"cannot use the ledger in {self._directory}: {error.strerror or error}",
            hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
        )
