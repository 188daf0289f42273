"""Records of images, one file each, beside the store of their blobs."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from vmrun.image.document import Document, parse_object
from vmrun.image.durable import PARTIAL, locked_directory, replace_file
from vmrun.image.layout import writing
from vmrun.image.limits import ImageLimits
from vmrun.image.store import ImageStore
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, StateError
from vmrun.model.record import Checkup, ImageRecord, PushedBy, SeenAs, as_text
from vmrun.model.scan import Verdict
from vmrun.model.trust import Claim, SignatureFormat

_LARGEST = 1 << 20
_LIMITS = ImageLimits(document=_LARGEST)
_MOST_NAMES = 50
_MOST_CLAIMS = 64
_SHORTEST_PREFIX = 6
_MOST = 1024
_FORGOTTEN = 90 * 24 * 3600.0
_HEX = re.compile("[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Freed:
    """Bytes of blobs that were deleted; ``busy``: some were left, because the store is in use."""

    bytes: int
    busy: bool = False


class ImageRecords:
    """The records in ``root`` (the image store's directory)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = root / "records"

    def all(self) -> tuple[ImageRecord, ...]:
        """Every record, the last met first. A damaged one is a :class:`StateError`."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StateError(
                f"cannot read {self._directory}: {error.strerror}", hint="check who may read it"
            ) from None
        paths = [self._directory / name for name in names if name.endswith(".json")]
        # One that is gone by now was removed by somebody else.
        found = [record for path in paths if (record := self._read(path)) is not None]
        return tuple(sorted(found, key=_met, reverse=True))

    def get(self, digest: Digest) -> ImageRecord | None:
        """The record of an image. A damaged one is a :class:`StateError`."""
        return self._read(self._path(digest))

    def find(self, *selectors: str) -> ImageRecord:
        """By digest, by the beginning of one (6 hex digits and more), by ``NAME@DIGEST``, or by
        reference: then the image that was met last under it. The first selector that fits counts.

        Raises :class:`StateError` when there is none, or when several digests begin so.
        """
        records = self.all()
        for selector in selectors:
            found = _by_digest(records, selector) or _by_reference(records, selector)
            if found is not None:
                return found
        raise StateError(f"no image {selectors[0][:300]!r} is known here", hint=_LIST)

    def change(self, digest: Digest, change: Callable[[ImageRecord], ImageRecord]) -> ImageRecord:
        """Replace an image's record (a new one if there is none) by ``change`` of it.

        Only the newest names are kept. Raises :class:`StateError`.
        """
        with writing(self._directory), self._locked():
            record = change(self.get(digest) or ImageRecord(digest))
            record, data = _encoded(record)
            replace_file(self._path(digest), data)
        return record

    def remove(self, record: ImageRecord, store: ImageStore) -> Freed:
        """Forget an image, and delete the blobs that no other record names.

        While somebody uses the store they stay, for :meth:`prune` to find.
        """
        with writing(self._directory), self._locked():
            current = self.get(record.digest) or record
            used = {b for other in self.all() if other.digest != record.digest for b in other.blobs}
            self._path(record.digest).unlink(missing_ok=True)
            with store.alone() as alone:
                mine = [blob for blob in current.blobs if blob not in used] if alone else []
                return Freed(sum(store.remove(blob) for blob in mine), busy=not alone)

    def prune(self, store: ImageStore) -> Freed:
        """Delete blobs that no record names, and what killed processes left half-written; forget
        images that have no blobs here and were not met for 90 days.

        While somebody uses the store only what was abandoned long ago is deleted.
        """
        with writing(self._directory), self._locked():
            records = self.all()
            used = {blob for record in records for blob in record.blobs}
            for record in records:
                if not record.blobs and _met(record) < time.time() - _FORGOTTEN:
                    self._path(record.digest).unlink(missing_ok=True)
            for name in os.listdir(self._directory):
                if name.startswith(PARTIAL):
                    (self._directory / name).unlink(missing_ok=True)
            with store.alone() as alone:
                if not alone:
                    return Freed(store.clear_abandoned(), busy=True)
                unused = [digest for digest in store.digests() if digest not in used]
                freed = sum(store.remove(digest) for digest in unused)
                return Freed(freed + store.clear_abandoned(older_than=0))

    def _path(self, digest: Digest) -> Path:
        return self._directory / f"{digest.algorithm}-{digest.hex}.json"

    def _read(self, path: Path) -> ImageRecord | None:
        where = f"record {str(path)!r}"
        try:
            with open_regular(path, "record") as file, reading(where):
                data = read_exactly(file, _LARGEST + 1)
            record = _record(parse_object(data, where, _LIMITS))
            if self._path(record.digest) != path:
                raise ImageError(f"{where}: is about {record.digest}")
        except ImageNotFound:
            return None
        except ImageError as error:
            raise StateError(
                f"damaged {error.message}", hint=f"remove {path}; it is only a memory"
            ) from None
        return record

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with locked_directory(self._directory):
            yield


_LIST = "see 'vmrun image ls'"


def _met(record: ImageRecord) -> float:
    pushed = record.pushed.at if record.pushed else 0.0
    return max((*(seen.at for seen in record.seen), record.last_run_at, pushed))


def _by_digest(records: Sequence[ImageRecord], selector: str) -> ImageRecord | None:
    algorithm, colon, start = selector.rpartition("@")[2].rpartition(":")
    if len(start) < _SHORTEST_PREFIX or not _HEX.fullmatch(start):
        return None
    found = [
        record
        for record in records
        if record.digest.hex.startswith(start)
        and (not colon or record.digest.algorithm == algorithm)
    ]
    if len(found) > 1:
        raise StateError(f"{selector!r} begins {len(found)} digests", hint="write more of it")
    return found[0] if found else None


def _by_reference(records: Sequence[ImageRecord], selector: str) -> ImageRecord | None:
    met = [
        (seen.at, record)
        for record in records
        for seen in record.seen
        if seen.reference == selector
    ]
    return max(met, key=lambda one: one[0])[1] if met else None


def _encoded(record: ImageRecord) -> tuple[ImageRecord, bytes]:
    """As much of a record as is worth keeping, and never more than is read."""
    record = _trimmed(record)
    while len(data := json.dumps(_plain(record), indent=1).encode()) > _LARGEST:
        if len(record.seen) + len(record.claims) == 0:
            raise StateError(f"the record of {record.digest} is too large: {len(data)} bytes")
        half = len(record.seen) // 2, len(record.claims) // 2
        record = replace(record, seen=record.seen[: half[0]], claims=record.claims[: half[1]])
    return record, data


def _trimmed(record: ImageRecord) -> ImageRecord:
    newest: dict[str, SeenAs] = {}
    for seen in sorted(record.seen, key=lambda one: one.at):
        name = as_text(seen.reference)
        newest.pop(name, None)
        newest[name] = SeenAs(name, seen.at)
    kept = tuple(reversed(newest.values()))[:_MOST_NAMES]
    return replace(record, seen=kept, claims=record.claims[:_MOST_CLAIMS])


def _plain(value: object) -> Any:
    if isinstance(value, Digest):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return as_text(value) if isinstance(value, str) else value


def _record(document: Document) -> ImageRecord:
    pushed = document.nested("pushed") if "pushed" in document else None
    checkup = document.nested("checkup") if "checkup" in document else None
    return ImageRecord(
        digest=Digest.parse(document.text("digest")),
        seen=tuple(
            SeenAs(item.text("reference"), item.real("at"))
            for item in document.objects("seen", _MOST)
        ),
        size=document.integer("size"),
        blobs=tuple(Digest.parse(text) for text in document.texts("blobs")),
        pushed=PushedBy(
            pushed.text("user"), pushed.text("account"), pushed.text("reference"), pushed.real("at")
        )
        if pushed
        else None,
        claims=tuple(_claim(item) for item in document.objects("claims", _MOST)),
        verified_at=document.real("verified_at"),
        checkup=_checkup(checkup) if checkup else None,
        runs=document.integer("runs"),
        last_run=document.text("last_run"),
        last_run_at=document.real("last_run_at"),
    )


def _claim(item: Document) -> Claim:
    return Claim(
        item.text("key_id"),
        Digest.parse(item.text("digest")),
        item.text("identity"),
        item.choice("format", SignatureFormat),
        item.real("signed_at") if "signed_at" in item else None,
        item.text("creator"),
    )


def _checkup(item: Document) -> Checkup:
    counts = item.nested("findings")
    return Checkup(
        item.choice("verdict", Verdict),
        item.real("at"),
        {name: counts.integer(name) for name in counts.names()},
    )
