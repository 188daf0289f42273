"""What policies and trust rules say, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmrun.model.image import Reference
    from vmrun.trust.files import TrustLayer


def requirements(layer: TrustLayer, reference: Reference | None) -> list[str]:
    """What the policy requires of an image, or of everything. Every key that it names is read."""
    from vmrun.policy.signature_policy import AcceptAnything, Requirement, Signed
    from vmrun.trust.files import load_key

    def words(scope: str, requirement: Requirement) -> str:
        if isinstance(requirement, AcceptAnything):
            return f"{scope}: {requirement}  (!! nothing is verified)"
        if not isinstance(requirement, Signed):
            return f"{scope}: {requirement}"
        keys = ", ".join(load_key(source).key_id for source in requirement.keys)
        return f"{scope}: signed by {keys} as {requirement.identity}"

    if layer.policy is None:
        return ["(no policy beside these rules)"]
    if reference is not None:
        scope, found = layer.policy.requirements(reference)
        return [words(scope, requirement) for requirement in found]
    return [words(scope, r) for scope, found in layer.policy.everything() for r in found]


def rules_of(layer: TrustLayer) -> list[str]:
    """What the trust rules say."""
    from vmrun.trust.downgrade import date

    def when(time: float | None, word: str) -> str:
        return "" if time is None else f" {word} {date(time)}"

    rules = layer.rules
    lines = [
        f"key {v.key_id}{f' ({v.name})' if v.name else ''} counts"
        f"{when(v.not_before, 'from')}{when(v.not_after, 'until')}"
        for v in rules.keys
    ]
    lines += [f"revoked key {key}: {reason}" for key, reason in rules.revoked_keys.items()]
    lines += [f"revoked {digest}: {reason}" for digest, reason in rules.revoked_digests.items()]
    lines += [f"{t.signatures} keys must agree below {t.scope}" for t in rules.thresholds]
    if rules.scan is not None and rules.scan.required:
        lines.append(f"a scan must find nothing above {rules.scan.max_severity.word}")
    lines += [f"catalogue {c.name}: {', '.join(c.scopes)}" for c in rules.catalogues]
    return [*lines, f"an image older than one accepted before: {rules.downgrade.name.lower()}"]
