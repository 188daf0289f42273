"""What this host remembers of an image that it has pulled, pushed, verified, scanned or run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmrun.model.digest import Digest
from vmrun.model.scan import Verdict
from vmrun.model.trust import Claim

LONGEST_TEXT = 4096


def as_text(value: str) -> str:
    """``value`` as text that any file can hold: no NUL, no bytes of a path that are not UTF-8,
    at most :data:`LONGEST_TEXT` characters, the last of which is ``…`` when there were more."""
    text = value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


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
    """One image. ``size`` is that of its blobs in bytes, 0 while nobody has met all of them;
    ``blobs`` are the digests that the local store keeps for it, none unless it is from a registry.

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
