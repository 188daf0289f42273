"""Keeping a TUF catalogue: names and digests, signed so that readers notice what is held back.

A reader, or the next publisher, finds a whole catalogue at every moment, whatever is killed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from vmrun.image.durable import locked_directory, replace_file
from vmrun.model.digest import Digest
from vmrun.model.errors import StateError, TrustError, UsageError, VmrunError
from vmrun.trust.tuf_keys import KeyFolder
from vmrun.trust.tuf_published import Published, load_published
from vmrun.trust.tuf_roles import KeyType, Role
from vmrun.trust.tuf_sign import LIFETIMES, File, Lifetimes, Signatory, lifetimes


@dataclass(frozen=True, slots=True)
class Listing:
    """What a catalogue says: digests and lengths (bytes) by name, and of each role the version
    and when it expires (seconds since 1970)."""

    names: Mapping[str, tuple[Digest, int]]
    roles: Mapping[str, tuple[int, float]]


def list_catalogue(directory: Path, keys: KeyFolder | None = None) -> Listing:
    """Read a catalogue. With the publisher's folder of keys it is checked against what was last
    published, without it only against its own first root."""
    at = load_published(directory, keys.recall if keys else lambda _role: None)
    return _listing(at)


def create_catalogue(
    directory: Path,
    keys: KeyFolder,
    *,
    now: float,
    root_keys: int = 1,
    root_threshold: int = 1,
    lifetimes: Lifetimes | None = None,
    kind: KeyType = KeyType.ED25519,
) -> Listing:
    """Make an empty catalogue in ``directory`` (new or empty) and keys for it in a new folder.

    Raises :class:`UsageError` for what cannot be, :class:`StateError` when files cannot be written.
    """
    days = lifetimes or Lifetimes()
    if not 1 <= root_threshold <= root_keys <= 16:
        raise UsageError(
            f"{root_threshold} of {root_keys} root keys cannot sign",
            hint="give --root-keys at least --root-threshold, and at most 16",
        )
    if not days.usable():
        raise UsageError(
            "a lifetime is less than a day or more than ten years", hint="give it in days"
        )
    _must_be_apart(directory, keys.directory)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty", hint="name a new or empty directory")
    except OSError as error:
        raise _unwritable(directory, error) from error
    keys.make()
    root = Root(unrecognized_fields={LIFETIMES: {role.value: days.days(role) for role in Role}})
    for role in Role:
        for _ in range(root_keys if role is Role.ROOT else 1):
            root.add_key(keys.create(role, kind).public_key, role.value)
    root.roles[Role.ROOT.value].threshold = root_threshold
    at = Published(Metadata(root), Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp()))
    publisher = Publisher(directory, keys, now=now)
    for role in Role:
        at.metadata(role).signed.version = 0
    with publisher.locked():
        first = publisher.signatory.next_root(at)
        publisher.write([first, *publisher.signatory.following(at, Role.TARGETS)])
    return _listing(at)


@dataclass(slots=True)
class Publisher:
    """Changes to a catalogue; each is one publication. ``now`` in seconds since 1970."""

    directory: Path
    keys: KeyFolder
    now: float

    def add(self, name: str, digest: Digest, length: int) -> Listing:
        """Let ``name`` mean ``digest`` (the manifest's, or its index's) from now on."""
        if digest.algorithm != "sha256" or length <= 0:
            raise UsageError(
                f"{digest} of {length} bytes cannot be listed",
                hint="give the manifest's sha256 and its length in bytes",
            )
        with self.locked():
            at = self._load()
            target = TargetFile(length, {digest.algorithm: digest.hex}, name)
            at.targets.signed.targets[name] = target
            self.write(self.signatory.following(at, Role.TARGETS))
        return _listing(at)

    def remove(self, name: str) -> Listing:
        """Let ``name`` mean nothing: no image of that name runs any more."""
        with self.locked():
            at = self._load()
            if at.targets.signed.targets.pop(name, None) is None:
                raise UsageError(
                    f"catalogue {self.directory} does not list {name}",
                    hint=f"see what it lists: vmrun catalogue ls {self.directory}",
                )
            self.write(self.signatory.following(at, Role.TARGETS))
        return _listing(at)

    def refresh(self, role: Role = Role.TIMESTAMP) -> Listing:
        """Sign a role anew before it expires, and those that follow from it; the snapshot with the
        timestamp when half of its time is over. The root is signed alone, where its keys are."""
        with self.locked():
            at = self._load()
            if role is Role.ROOT:
                self.write([self.signatory.next_root(at)])
                return _listing(at)
            half = lifetimes(at.root.signed).of(Role.SNAPSHOT) / 2
            if (
                role is Role.TIMESTAMP
                and at.snapshot.signed.expires - self.signatory.clock() < half
            ):
                role = Role.SNAPSHOT
            self.write(self.signatory.following(at, role))
        return _listing(at)

    def rotate(self, role: Role, key_id: str | None = None) -> tuple[Listing, tuple[str, ...]]:
        """Replace a role's keys, or the one whose id begins with ``key_id``, and its private files.

        Also gives the new keys' ids. Where an old key is lost, readers refuse the catalogue from
        the new root on until the timestamp follows it, a moment later.
        """
        with self.locked():
            at = self._load()
            ids = tuple(at.root.signed.roles[role.value].keyids)
            old = [known for known in ids if key_id is None or known.startswith(key_id)]
            if not old:
                raise UsageError(
                    f"no key of {role} begins with {key_id!r}", hint=f"there are: {', '.join(ids)}"
                )
            leaving = self.keys.signers(role, old)
            fresh = [self.keys.create(role, self.keys.kind(role, ids)) for _ in old]
            try:
                files = self.signatory.change_keys(at, role, old, leaving, fresh)
            except VmrunError:
                for signer in fresh:
                    self.keys.discard(role, signer.public_key.keyid)
                raise
            self.write(files)
            for known in old:
                self.keys.discard(role, known)
        return _listing(at), tuple(signer.public_key.keyid for signer in fresh)

    @property
    def signatory(self) -> Signatory:
        """What signs."""
        return Signatory(self.keys, self.now)

    def locked(self) -> AbstractContextManager[None]:
        """One publisher at a time."""
        return _Locked(self.directory)

    def write(self, files: Sequence[File]) -> None:
        """Write files in their order, and remember them."""
        for _, name, data in files:
            try:
                replace_file(self.directory / name, data, mode=0o644)
            except OSError as error:
                raise _unwritable(self.directory, error) from error
        # Not before: until then our own last words are those that the timestamp leads to.
        for role, _, data in files:
            self.keys.remember(role, data)

    def _load(self) -> Published:
        self.keys.check()
        _must_be_apart(self.directory, self.keys.directory)
        if self.keys.recall(Role.ROOT) is None:
            # Whoever can write to the directory could name a root of his own, with our keys in it,
            # and would get his list signed.
            raise TrustError(
                f"folder of keys {self.keys.directory} has no published/root.json",
                hint="restore it from a backup: it says whose lists may be signed again",
            )
        return load_published(self.directory, self.keys.recall)


class _Locked(AbstractContextManager[None]):
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = locked_directory(directory)

    def __enter__(self) -> None:
        try:
            self._lock.__enter__()
        except OSError as error:
            raise StateError(
                f"catalogue {self._directory}: {error.strerror or error}",
                hint="make one with: vmrun catalogue init DIR",
            ) from None

    def __exit__(self, *details: object) -> None:
        self._lock.__exit__(None, None, None)


def _listing(at: Published) -> Listing:
    names = {
        name: (Digest.parse(f"sha256:{target.hashes.get('sha256')}"), target.length)
        for name, target in sorted(at.targets.signed.targets.items())
    }
    roles = {role.value: _state(at.metadata(role).signed) for role in Role}
    return Listing(names, roles)


def _state(signed: Signed) -> tuple[int, float]:
    return signed.version, signed.expires.timestamp()


def _must_be_apart(directory: Path, keys: Path) -> None:
    published, private = Path(os.path.realpath(directory)), Path(os.path.realpath(keys))
    if private.is_relative_to(published) or published.is_relative_to(private):
        raise UsageError(
            f"the private keys in {keys} would lie with the published files in {directory}",
            hint="name a folder outside of it with --keys",
        )


def _unwritable(directory: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write the catalogue in {directory}: {error.strerror or error}",
        hint="check who may write there, and the disk's space",
    )
