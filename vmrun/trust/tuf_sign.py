"""Signing a catalogue's metadata: which files a change makes, and in which order they go out.

Versioned files come first, then ``timestamp.json``, which alone makes them current. When a key is
changed its role is first signed by the old key and the new one, and the root that drops the old one
comes last: readers of both roots find what they accept at every moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root  # type: ignore[attr-defined]

from vmrun.model.errors import TrustError, UsageError
from vmrun.trust.tuf_fetch import LARGEST_TARGETS
from vmrun.trust.tuf_keys import KeyFolder
from vmrun.trust.tuf_published import Published
from vmrun.trust.tuf_roles import Role

LONGEST = 3660
"""Days."""
LIFETIMES = "x-vmrun-lifetimes"
"""Where the root says for how many days each role is signed (a field that TUF lets be)."""

File = tuple[Role, str, bytes]
"""Whose metadata, under which name, the bytes."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how many days each role's signature is good."""

    root: int = 365
    targets: int = 90
    snapshot: int = 30
    timestamp: int = 7

    def days(self, role: Role) -> int:
        """A role's."""
        found: int = getattr(self, role.value)
        return found

    def usable(self) -> bool:
        """Whether each is a day at least and :data:`LONGEST` at most."""
        return all(1 <= self.days(role) <= LONGEST for role in Role)

    def of(self, role: Role) -> timedelta:
        """A role's."""
        return timedelta(days=self.days(role))


@dataclass(frozen=True, slots=True)
class Signatory:
    """Signs what has changed. ``now`` in seconds since 1970."""

    keys: KeyFolder
    now: float

    def next_root(self, at: Published, before: Root | None = None) -> File:
        """The next version of the root, signed by its keys and by those that ``before`` named."""
        names = list(at.root.signed.roles[Role.ROOT.value].keyids)
        if before is not None:
            names += [k for k in before.roles[Role.ROOT.value].keyids if k not in names]
        signers = self.keys.signers(Role.ROOT, names)
        data = self._sign(at, Role.ROOT, at.root, signers, *([before] if before else []))
        return Role.ROOT, f"{at.root.signed.version}.root.json", data

    def change_keys(
        self,
        at: Published,
        role: Role,
        old: Sequence[str],
        leaving: Sequence[CryptoSigner],
        fresh: Sequence[CryptoSigner],
    ) -> list[File]:
        """What puts ``fresh`` keys in the place of ``old``, of which ``leaving`` are at hand."""
        before = deepcopy(at.root.signed)
        for known in old:
            at.root.signed.revoke_key(known, role.value)
        for signer in fresh:
            at.root.signed.add_key(signer.public_key, role.value)
        root = self.next_root(at, before)
        if role is Role.ROOT:
            return [root]
        if len(leaving) == len(old):
            # Both the old root and the new one accept what both keys have signed.
            return [*self.following(at, role, leaving), root]
        files = self.following(at, role)
        return [*files[:-1], root, files[-1]]

    def following(
        self, at: Published, first: Role, leaving: Sequence[CryptoSigner] = ()
    ) -> list[File]:
        """New versions of ``first`` and every role after it; ``leaving`` sign ``first`` too."""
        files: list[File] = []
        # After a rotation that was cut short something may bear no good signature.
        stale = [role for role in (Role.TARGETS, Role.SNAPSHOT) if not _accepted(at, role)]
        order = (Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP)
        for role in order[min(order.index(known) for known in (*stale, first)) :]:
            metadata = at.metadata(role)
            signers = self.keys.signers(role, at.root.signed.roles[role.value].keyids)
            signers += leaving if role is first else ()
            data = self._sign(at, role, metadata, signers)
            version = metadata.signed.version
            described = MetaFile.from_data(version, data, ["sha256"])
            name = f"{version}.{role}.json"
            if role is Role.TARGETS:
                _must_be_readable(data)
                at.snapshot.signed.meta["targets.json"] = described
            elif role is Role.SNAPSHOT:
                at.timestamp.signed.snapshot_meta = described
            else:
                name = "timestamp.json"
            files.append((role, name, data))
        return files

    def _sign(
        self,
        at: Published,
        role: Role,
        metadata: Metadata[Any],
        signers: Sequence[CryptoSigner],
        *also: Root,
    ) -> bytes:
        """The next version of a role's metadata; ``also`` are roots besides the current one that
        must accept it."""
        metadata.signed.version += 1
        metadata.signed.expires = self.clock() + lifetimes(at.root.signed).of(role)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        for root in (at.root.signed, *also):
            try:
                root.verify_delegate(role.value, metadata.signed_bytes, metadata.signatures)
            except UnsignedMetadataError:
                threshold = root.roles[role.value].threshold
                raise TrustError(
                    f"{role} needs {threshold} of its keys to sign, and {self.keys.directory} has"
                    " fewer",
                    hint="put them there (the files are named by role and id), or restore them",
                ) from None
        return metadata.to_bytes()

    def clock(self) -> datetime:
        """Now."""
        return datetime.fromtimestamp(self.now, UTC)


def lifetimes(root: Root) -> Lifetimes:
    """Those that the root states, or the default."""
    said = root.unrecognized_fields.get(LIFETIMES)
    days = said if isinstance(said, dict) else {}
    stated = Lifetimes(**{r.value: d for r in Role if type(d := days.get(r.value)) is int})
    return stated if stated.usable() else Lifetimes()


def _accepted(at: Published, role: Role) -> bool:
    metadata = at.metadata(role)
    root = at.root.signed
    result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return bool(result.verified)


def _must_be_readable(data: bytes) -> None:
    if len(data) > LARGEST_TARGETS:
        raise UsageError(
            f"the catalogue would have {len(data)} bytes, readers accept {LARGEST_TARGETS}",
            hint="remove names, or keep a second catalogue",
        )
