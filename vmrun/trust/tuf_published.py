"""What a catalogue's directory holds, checked before a publisher builds upon it.

A reader's rules without their clock: the publisher must be able to open a catalogue that has
expired, because only it can renew it. Whatever else is wrong is refused, lest an entry that a
stranger has written, or an old one that was put back, gets signed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from vmrun.model.errors import ImageError, Refused
from vmrun.trust.tuf_errors import explained
from vmrun.trust.tuf_fetch import BASE, LIMITS, DirectoryFetcher
from vmrun.trust.tuf_roles import Role

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)
Recall = Callable[[Role], bytes | None]


@dataclass(slots=True)
class Published:
    """The current metadata of each role, to be changed and signed anew."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def metadata(self, role: Role) -> Metadata[Any]:
        """A role's."""
        found: Metadata[Any] = getattr(self, role.value)
        return found


def load_published(directory: Path, recall: Recall) -> Published:
    """Read and check ``directory``. ``recall`` gives what this publisher published last: trust
    begins with that root, and nothing older counts. Without one it begins with the directory's own
    version 1: enough to look at it, and never to sign.

    Raises :class:`Refused` or :class:`ImageError` for what a publisher must not build upon.
    """
    reader = _Reader(directory, recall)
    with explained(str(directory)):
        return reader.load()


class _Reader:
    def __init__(self, directory: Path, recall: Recall) -> None:
        self._directory = directory
        self._recall = recall
        self._fetcher = DirectoryFetcher(directory)

    def load(self) -> Published:
        root = self._root()
        timestamp = self._role(Timestamp, Role.TIMESTAMP, "timestamp.json", root)
        self._must_not_be_older(timestamp.signed)
        meta = timestamp.signed.snapshot_meta
        name = f"{meta.version}.snapshot.json"
        snapshot = self._role(Snapshot, Role.SNAPSHOT, name, root, meta.verify_length_and_hashes)
        meta = snapshot.signed.meta["targets.json"]
        name = f"{meta.version}.targets.json"
        targets = self._role(Targets, Role.TARGETS, name, root, meta.verify_length_and_hashes)
        return Published(root, targets, snapshot, timestamp)

    def _root(self) -> Metadata[Root]:
        data = self._recall(Role.ROOT)
        if data is None:
            data = self._read("1.root.json", LIMITS.root_max_length)
        root = _parse(Root, data)
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
        while True:
            version = root.signed.version + 1
            try:
                data = self._read(f"{version}.root.json", LIMITS.root_max_length)
            except DownloadHTTPError:
                return root
            newer = _parse(Root, data)
            root.signed.verify_delegate(Root.type, newer.signed_bytes, newer.signatures)
            newer.signed.verify_delegate(Root.type, newer.signed_bytes, newer.signatures)
            if newer.signed.version != version:
                raise Refused(
                    f"catalogue {self._directory}: {version}.root.json says it is version"
                    f" {newer.signed.version}",
                    hint="restore the directory from a copy",
                )
            root = newer

    def _role(
        self,
        kind: type[_T],
        role: Role,
        name: str,
        root: Metadata[Root],
        check: Callable[[bytes], None] | None = None,
    ) -> Metadata[_T]:
        data = self._read(name, LIMITS.targets_max_length)
        if check is not None:
            check(data)
        found = _parse(kind, data)
        # Our own last words need no proof: a rotation that was cut short may have left them
        # without a key that the newest root names.
        if data != self._recall(role):
            root.signed.verify_delegate(role.value, found.signed_bytes, found.signatures)
        return found

    def _must_not_be_older(self, timestamp: Timestamp) -> None:
        data = self._recall(Role.TIMESTAMP)
        if data is None:
            return
        known = _parse(Timestamp, data).signed
        ours = (known.version, known.snapshot_meta.version)
        theirs = (timestamp.version, timestamp.snapshot_meta.version)
        if theirs[0] < ours[0] or theirs[1] < ours[1]:
            raise Refused(
                f"catalogue {self._directory} is older (timestamp {theirs[0]}, snapshot"
                f" {theirs[1]}) than what was published last ({ours[0]}, {ours[1]})",
                hint="somebody put an old copy there; restore the newest one",
            )

    def _read(self, name: str, limit: int) -> bytes:
        return self._fetcher.download_bytes(f"{BASE}{name}", limit)


def _parse(kind: type[_T], data: bytes) -> Metadata[_T]:
    found: Metadata[_T] = Metadata.from_bytes(data)
    if not isinstance(found.signed, kind):
        raise ImageError(
            f"metadata of {found.signed.type} where that of {kind.type} should be",
            hint="restore the directory from a copy",
        )
    return found
