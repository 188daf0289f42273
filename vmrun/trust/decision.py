"""May this image run? Signatures against policies and rules, in an order that fails closed.

Revoked digests first, then keys that are revoked or out of their time are no keys at all, then the
requirements of every policy that applies, then how many keys agree, then the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from vmrun.model.errors import Refused
from vmrun.model.image import ImageDigests, Reference
from vmrun.model.trust import Claim, Trust
from vmrun.policy.identity import DockerName
from vmrun.policy.signature_policy import AcceptAnything, Reject, Signed
from vmrun.policy.trust_rules import Downgrade, KeyValidity
from vmrun.trust.files import TrustLayer, load_key
from vmrun.trust.keys import PublicKey
from vmrun.trust.ledger import Ledger, LedgerEntry
from vmrun.trust.signatures import Signatures, check

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Subject:
    """The image that is to be decided about. ``name`` is what the ledger and thresholds know it
    by: the registry's name, or for other transports the name that its signatures give it."""

    reference: Reference
    digests: ImageDigests
    signatures: Signatures


def decide(
    subject: Subject, layers: Sequence[TrustLayer], ledger: Ledger, *, now: float
) -> tuple[Trust, tuple[str, ...]]:
    """Why the image may run, and what the user should be told besides.

    Raises :class:`Refused` with the reason, :class:`SettingsError` or :class:`TrustError` when a
    key that a policy names cannot be read. ``now`` in seconds since 1970.
    """
    if reason := revoked(subject.digests, (), layers):
        raise Refused(
            f"{subject.reference} is revoked: {reason}",
            hint="run a newer image; 'vmrun policy show' lists what is revoked",
        )
    trust = Trust()
    for layer in layers:
        trust = _merge(trust, _satisfy(subject, layer, layers, now))
    notes = list(_against_ledger(subject, trust, layers, ledger))
    if trust.insecure:
        notes.append(
            f"{subject.reference} is NOT verified: {_names(trust)} accepts anything from there"
        )
    return trust, tuple(notes)


def revoked(
    digests: ImageDigests, key_ids: Sequence[str], layers: Sequence[TrustLayer]
) -> str | None:
    """Why an image, or who vouched for it, is revoked by now; None if neither is."""
    for layer in layers:
        for digest in digests.all:
            if digest in layer.rules.revoked_digests:
                return f"digest {digest}: {layer.rules.revoked_digests[digest]}"
    for layer in layers:
        for key_id in key_ids:
            if key_id in layer.rules.revoked_keys:
                return f"key {key_id}: {layer.rules.revoked_keys[key_id]}"
    return None


def record(subject: Subject, trust: Trust, ledger: Ledger) -> None:
    """Let the ledger move forward to an image that was accepted by its signatures."""
    for name, claims in _by_name(subject, trust).items():
        times = [claim.signed_at for claim in claims if claim.signed_at is not None]
        if times:
            ledger.advance(LedgerEntry(name, subject.digests.manifest, max(times)))


def _satisfy(
    subject: Subject, layer: TrustLayer, layers: Sequence[TrustLayer], now: float
) -> Trust:
    if layer.policy is None:
        return Trust(policies=layer.files)
    scope, requirements = layer.policy.requirements(subject.reference)
    claims: tuple[Claim, ...] = ()
    insecure = False
    for requirement in requirements:
        if isinstance(requirement, Reject):
            raise Refused(
                f"{subject.reference} is rejected by policy {layer.name} (scope {scope})",
                hint="see 'vmrun policy show'; 'vmrun policy allow SCOPE --key FILE' lets signed"
                " images of a scope run",
            )
        if isinstance(requirement, AcceptAnything):
            insecure = True
        else:
            claims += _signed(subject, requirement, scope, layer, layers, now)
    insecure = insecure and not claims
    needed = _threshold(subject, layers)
    if not insecure and len({claim.key_id for claim in claims}) < needed:
        raise Refused(
            f"{subject.reference}: {len({c.key_id for c in claims})} of {needed} keys that must"
            " agree have signed it",
            hint="have it signed with another key: vmrun image sign",
        )
    text = tuple(f"{scope}: {requirement}" for requirement in requirements)
    return Trust(_unique(claims), text, layer.files, insecure)


def _threshold(subject: Subject, layers: Sequence[TrustLayer]) -> int:
    name = DockerName.of(subject.reference)
    return max(layer.rules.threshold(str(name) if name else "") for layer in layers)


def _signed(
    subject: Subject,
    requirement: Signed,
    scope: str,
    layer: TrustLayer,
    layers: Sequence[TrustLayer],
    now: float,
) -> tuple[Claim, ...]:
    keys, reasons = [], []
    for source in requirement.keys:
        key = load_key(source)
        unusable = _unusable(key, layers, now)
        if unusable:
            reasons.append(f"key {_short(key.key_id)} ({source.where}) {unusable}")
        else:
            keys.append(key)
    checked = check(subject.signatures, keys, subject.digests.lineage)
    image, accepted = DockerName.of(subject.reference), []
    for claim in checked.claims:
        signed = DockerName.parse(claim.identity)
        if signed is None:
            said = repr(claim.identity[:200]) if claim.identity else "no name"
            reasons.append(f"a signature by {_short(claim.key_id)} is for {said}")
        elif not requirement.identity.accepts(image, signed):
            reasons.append(
                f"the signature by {_short(claim.key_id)} is for {claim.identity[:200]!r}"
            )
        else:
            accepted.append(claim)
    if accepted:
        return tuple(accepted)
    reasons += checked.rejections
    if not reasons:
        raise Refused(
            f"{subject.reference} ({subject.digests.manifest}) is not signed, and policy"
            f" {layer.name} (scope {scope}) requires it",
            hint="sign it: vmrun image sign REF --key FILE",
        )
    raise Refused(
        f"{subject.reference} ({subject.digests.manifest}): no signature satisfies policy"
        f" {layer.name} (scope {scope})",
        details="\n".join(reasons[:_SHOWN]),
        hint="see the keys that count with: vmrun policy show REF",
    )


def _unusable(key: PublicKey, layers: Sequence[TrustLayer], now: float) -> str:
    for layer in layers:
        if key.key_id in layer.rules.revoked_keys:
            return f"is revoked: {layer.rules.revoked_keys[key.key_id]}"
        for validity in layer.rules.keys:
            if validity.key_id == key.key_id and (reason := _out_of_time(validity, now)):
                return reason
    return ""


def _out_of_time(validity: KeyValidity, now: float) -> str:
    if validity.not_before is not None and now < validity.not_before:
        return f"is not valid before {_date(validity.not_before)}"
    if validity.not_after is not None and now >= validity.not_after:
        return f"is not valid after {_date(validity.not_after)}"
    return ""


def _against_ledger(
    subject: Subject, trust: Trust, layers: Sequence[TrustLayer], ledger: Ledger
) -> list[str]:
    mode = max(layer.rules.downgrade for layer in layers)
    notes: list[str] = []
    if mode is Downgrade.OFF:
        return notes
    for name, claims in _by_name(subject, trust).items():
        newest = ledger.newest(name)
        if newest is None or newest.digest in subject.digests.lineage:
            continue
        # Without a time a signature cannot show that it is the newer one.
        signed = max((claim.signed_at or 0.0 for claim in claims), default=0.0)
        if signed >= newest.signed_at:
            continue
        text = (
            f"{name} was signed {_date(signed) if signed else 'at no known time'}, but an image"
            f" signed {_date(newest.signed_at)} ({newest.digest}) was accepted before"
        )
        if mode is Downgrade.REFUSE:
            raise Refused(
                f"downgrade: {text}",
                hint=f"if that is intended sign it again, or run: vmrun policy forget {name}",
            )
        notes.append(f"downgrade: {text}")
    return notes


def _by_name(subject: Subject, trust: Trust) -> dict[str, tuple[Claim, ...]]:
    """Accepted claims by the name that the ledger knows the image by: the registry's, or for
    other transports the one that was signed."""
    name = DockerName.of(subject.reference)
    if name is not None and not name.tag:
        return {}  # a digest cannot be moved back
    if name is not None:
        return {str(name): trust.claims} if trust.claims else {}
    found: dict[str, tuple[Claim, ...]] = {}
    for claim in trust.claims:
        found[claim.identity] = (*found.get(claim.identity, ()), claim)
    return found


def _merge(one: Trust, other: Trust) -> Trust:
    return replace(
        one,
        claims=_unique((*one.claims, *other.claims)),
        requirements=(*one.requirements, *other.requirements),
        policies=(*one.policies, *other.policies),
        insecure=not (one.claims or other.claims) and (one.insecure or other.insecure),
    )


def _unique(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    return tuple(dict.fromkeys(claims))


def _names(trust: Trust) -> str:
    return ", ".join(name for name, _ in trust.policies)


def _short(key_id: str) -> str:
    return key_id[:19] + "…"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
