"""May this image run? Signatures against policies and rules, in an order that fails closed.

Revoked digests first, then keys that are revoked or out of their time are no keys at all, then the
requirements of every policy that applies, then how many keys agree, then the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from vmrun.model.errors import Refused
from vmrun.model.image import ImageDigests, Reference, Transport
from vmrun.model.trust import Claim, Trust
from vmrun.policy.identity import DockerName
from vmrun.policy.signature_policy import AcceptAnything, Reject, Signed
from vmrun.policy.trust_rules import KeyValidity
from vmrun.trust.downgrade import advance, against_ledger, date
from vmrun.trust.files import TrustLayer, load_key
from vmrun.trust.keys import PublicKey
from vmrun.trust.ledger import Ledger
from vmrun.trust.signatures import Signatures, check

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Subject:
    """The image that is to be decided about. The ledger and thresholds know it by its name in the
    registry, or for other transports by the names that its signatures give it."""

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
    if not any(layer.policy for layer in layers):
        raise Refused(
            f"{subject.reference} is rejected: there is no policy that allows it",
            hint="write one: vmrun policy init",
        )
    each = [_satisfy(subject, layer, layers, now) for layer in layers]
    trust = reduce(_merge, each)
    for layer, own in zip(layers, each, strict=True):
        # Keys that only another policy names must not make up the number: that would relax it.
        _enough_keys(subject, layer, own.claims if layer.policy else trust.claims)
    mode = max(layer.rules.downgrade for layer in layers)
    notes = [
        *against_ledger(
            subject.reference, subject.digests, trust.claims, ledger, mode=mode, now=now
        )
    ]
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


def record(subject: Subject, trust: Trust, ledger: Ledger, *, now: float | None = None) -> None:
    """Let the ledger move forward to an image that was accepted by its signatures."""
    at = time.time() if now is None else now
    advance(subject.reference, subject.digests, trust.claims, ledger, now=at)


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
    text = tuple(f"{scope}: {requirement}" for requirement in requirements)
    return Trust(_unique(claims), text, layer.files, insecure)


def _enough_keys(subject: Subject, layer: TrustLayer, claims: Sequence[Claim]) -> None:
    """A rule about a name holds under whatever name the image was asked for or signed as."""
    names = {str(name)} if (name := DockerName.of(subject.reference)) else set()
    needed = max(map(layer.rules.threshold, names | {c.identity for c in claims}), default=0)
    agreeing = sorted({claim.key_id for claim in claims})
    if len(agreeing) < needed:
        raise Refused(
            f"{subject.reference}: {len(agreeing)} of {needed} different keys have signed it that"
            f" must agree by the trust rules {layer.files[-1][0]}",
            details="\n".join(f"signed by key {key}" for key in agreeing),
            hint="have it signed with another key: vmrun image sign REF --key FILE",
        )


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
        reason = unusable(key, layers, now)
        if reason:
            reasons.append(f"key {_short(key.key_id)} ({source.where}) {reason}")
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
    details = [
        f"{layer.name}, scope {scope}, requires: {requirement}",
        *(f"key {key.key_id} ({key.where}) counts" for key in keys),
        *reasons,
    ]
    if len(details) > _SHOWN:
        details[_SHOWN:] = [f"and {len(details) - _SHOWN} more"]
    signed_at_all = subject.signatures.found or subject.signatures.malformed
    raise Refused(
        f"{subject.reference} ({subject.digests.manifest})"
        + (": no signature satisfies" if signed_at_all else " is not signed, as is required by")
        + f" policy {layer.name} (scope {scope})",
        details="\n".join(details),
        hint="see the keys that count with: vmrun policy show REF"
        if signed_at_all
        else _how_to_sign(subject.reference),
    )


def _how_to_sign(reference: Reference) -> str:
    if reference.transport in (Transport.DOCKER, Transport.OCI):
        return "sign it: vmrun image sign REF --key FILE"
    return f"{reference.transport}: keeps no signatures; sign the image in a registry or a layout"


def unusable(key: PublicKey, layers: Sequence[TrustLayer], now: float) -> str:
    """Why a key does not count at ``now``; empty if it does."""
    for layer in layers:
        if key.key_id in layer.rules.revoked_keys:
            return f"is revoked: {layer.rules.revoked_keys[key.key_id]}"
        for validity in layer.rules.keys:
            if validity.key_id == key.key_id and (reason := _out_of_time(validity, now)):
                return reason
    return ""


def _out_of_time(validity: KeyValidity, now: float) -> str:
    if validity.not_before is not None and now < validity.not_before:
        return f"is not valid before {date(validity.not_before)}"
    if validity.not_after is not None and now >= validity.not_after:
        return f"is not valid after {date(validity.not_after)}"
    return ""


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
