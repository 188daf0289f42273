"""What this host remembers of an image that it has pulled, pushed, verified, scanned or run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmrun.model.digest import Digest
from vmrun.model.scan import Verdict
from vmrun.model.trust import Claim


@dataclass(frozen=True, slots=True)
class SeenAs:
    """A reference under which an image was met, and when last (seconds since 1970)."""

    reference: str
    at: float


@dataclass(frozen=True, slots=True)
class PushedBy:
    """Who pushed an image from here: a user of this host, and the registry's name for them."""

    user: str
    account: str
    reference: str
    at: float


@dataclass(frozen=True, slots=True)
class Checkup:
    """The last scan's verdict, and how many findings it had by severity."""

    verdict: Verdict
    at: float
    findings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image. ``blobs`` are the digests that the local store keeps for it; ``size`` in bytes.

    ``claims`` are those of the last verification. It is a memory, not evidence: what runs is
    verified each time.
    """

    digest: Digest
    seen: tuple[SeenAs, ...] = ()
    size: int = 0
    blobs: tuple[Digest, ...] = ()
    pushed: PushedBy | None = None
    claims: tuple[Claim, ...] = ()
    verified_at: float = 0.0
    checkup: Checkup | None = None
    runs: int = 0
    last_run: str = ""
    last_run_at: float = 0.0
