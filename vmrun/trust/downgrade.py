"""Is this image older than one of the same name that was accepted before?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from vmrun.model.errors import Refused
from vmrun.model.image import ImageDigests, Reference
from vmrun.model.trust import Claim
from vmrun.policy.identity import DockerName
from vmrun.policy.trust_rules import Downgrade
from vmrun.trust.ledger import Ledger, LedgerEntry

_SKEW = 24 * 3600.0
"""How far a signer's clock may be ahead. A time beyond that is none: it would keep every later
image of the name from being the newer one."""


def against_ledger(
    reference: Reference,
    digests: ImageDigests,
    claims: Sequence[Claim],
    ledger: Ledger,
    *,
    mode: Downgrade,
    now: float,
) -> tuple[str, ...]:
    """What to tell the user of downgrades. Raises :class:`Refused` when ``mode`` says so, and
    :class:`StateError` when the ledger cannot be read. ``now`` in seconds since 1970."""
    notes: list[str] = []
    if mode is Downgrade.OFF:
        return ()
    for name, signed in _times(reference, claims, now).items():
        newest = ledger.newest(name)
        if newest is None or newest.digest in digests.lineage:
            continue
        # Without a time a signature cannot show that it is the newer one.
        if signed is not None and signed >= newest.signed_at:
            continue
        when = date(signed) if signed is not None else "at no time that it can show"
        text = (
            f"{name} was signed {when}, but an image signed {date(newest.signed_at)}"
            f" ({newest.digest}) was accepted before"
        )
        if mode is Downgrade.REFUSE:
            raise Refused(
                f"downgrade: {text}",
                hint=f"if that is intended sign it again, or run: vmrun policy forget {name}",
            )
        notes.append(f"downgrade: {text}")
    return tuple(notes)


def advance(
    reference: Reference,
    digests: ImageDigests,
    claims: Sequence[Claim],
    ledger: Ledger,
    *,
    now: float,
) -> None:
    """Let the ledger move forward to an image that was accepted by ``claims``."""
    for name, signed in _times(reference, claims, now).items():
        if signed is not None:
            ledger.advance(LedgerEntry(name, digests.manifest, signed))


def date(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 has it, in UTC; a signer's clock may say anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "in no year of the calendar"


def _times(reference: Reference, claims: Sequence[Claim], now: float) -> dict[str, float | None]:
    """The newest time that is claimed, by the name that the ledger knows the image by: the
    registry's, or for other transports the one that was signed."""
    name = DockerName.of(reference)
    if name is not None and not name.tag:
        return {}  # a digest cannot be moved back
    found: dict[str, float | None] = {}
    for claim in claims:
        key = str(name) if name is not None else claim.identity
        known, claimed = found.get(key), claim.signed_at
        if claimed is not None and claimed > now + _SKEW:
            claimed = None
        times = [time for time in (known, claimed) if time is not None]
        found[key] = max(times, default=None)
    return found
