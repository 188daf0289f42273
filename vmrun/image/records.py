"""Records of images, one file each, beside the store of their blobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vmrun.image.document import Document, parse_object
from vmrun.image.durable import locked_directory, replace_file
from vmrun.image.layout import writing
from vmrun.image.limits import ImageLimits
from vmrun.image.store import ImageStore
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, StateError
from vmrun.model.record import Checkup, ImageRecord, PushedBy, SeenAs
from vmrun.model.scan import Verdict
from vmrun.model.trust import Claim, SignatureFormat

_LARGEST = 1 << 20
_LIMITS = ImageLimits(document=_LARGEST)
_MOST_NAMES = 50
_SHORTEST_PREFIX = 6
_MOST = 1024


class ImageRecords:
    """The records in ``root`` (the image store's directory)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = root / "records"

    def all(self) -> tuple[ImageRecord, ...]:
        """Every record, the last met first. A damaged one is a :class:`StateError`."""
        if not self._directory.is_dir():
            return ()
        found = [self._read(path) for path in sorted(self._directory.glob("*.json"))]
        return tuple(sorted(found, key=_met, reverse=True))

    def get(self, digest: Digest) -> ImageRecord | None:
        """The record of an image."""
        path = self._path(digest)
        return self._read(path) if path.exists() else None

    def find(self, selector: str) -> ImageRecord:
        """By digest, by the beginning of one (6 hex digits and more), or by reference.

        Raises :class:`StateError` when there is none or more than one.
        """
        wanted = selector.removeprefix("sha256:")
        records = self.all()
        by_digest = [
            record
            for record in records
            if len(wanted) >= _SHORTEST_PREFIX and record.digest.hex.startswith(wanted)
        ]
        found = by_digest or [r for r in records if any(s.reference == selector for s in r.seen)]
        if len(by_digest) > 1:
            raise StateError(
                f"{selector!r} begins {len(by_digest)} digests", hint="write more of it"
            )
        if not found:
            raise StateError(f"no image {selector!r} is known here", hint="see 'vmrun image ls'")
        return found[0]

    def change(self, digest: Digest, change: Callable[[ImageRecord], ImageRecord]) -> ImageRecord:
        """Replace an image's record (a new one if there is none) by ``change`` of it."""
        with writing(self._directory), self._locked():
            record = change(self.get(digest) or ImageRecord(digest))
            record = _trimmed(record)
            replace_file(self._path(digest), json.dumps(_plain(record), indent=1).encode())
        return record

    def remove(self, record: ImageRecord, store: ImageStore) -> int:
        """Forget an image, and delete the blobs that no other record names; the bytes freed."""
        with writing(self._directory), self._locked():
            self._path(record.digest).unlink(missing_ok=True)
            used = {blob for other in self.all() for blob in other.blobs}
            return sum(store.remove(blob) for blob in record.blobs if blob not in used)

    def prune(self, store: ImageStore) -> int:
        """Delete blobs that no record names, and what killed downloads left; the bytes freed."""
        with writing(self._directory), self._locked():
            used = {blob for record in self.all() for blob in record.blobs}
            unused = [digest for digest in store.digests() if digest not in used]
            return sum(store.remove(digest) for digest in unused) + store.clear_abandoned()

    def _path(self, digest: Digest) -> Path:
        return self._directory / f"{digest.algorithm}-{digest.hex}.json"

    def _read(self, path: Path) -> ImageRecord:
        try:
            with open_regular(path, "record") as file, reading(f"record {path}"):
                data = read_exactly(file, _LARGEST + 1)
            return _record(parse_object(data, f"record {str(path)!r}", _LIMITS))
        except ImageNotFound as error:
            raise StateError(error.message) from None
        except ImageError as error:
            raise StateError(
                f"damaged {error.message}", hint=f"remove {path}; it is only a memory"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with locked_directory(self._directory):
            yield


def _met(record: ImageRecord) -> float:
    return max((seen.at for seen in record.seen), default=0.0)


def _trimmed(record: ImageRecord) -> ImageRecord:
    newest: dict[str, SeenAs] = {}
    for seen in sorted(record.seen, key=lambda one: one.at):
        newest.pop(seen.reference, None)
        newest[seen.reference] = seen
    kept = tuple(reversed(newest.values()))[:_MOST_NAMES]
    return ImageRecord(
        **({f.name: getattr(record, f.name) for f in fields(record)} | {"seen": kept})
    )


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
    return value


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
