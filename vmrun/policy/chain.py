"""The chain from a reference to what runs, in words."""

from __future__ import annotations

from collections.abc import Iterator

from vmrun.model.image import ImageDigests, Reference
from vmrun.model.trust import Trust


def chain(reference: Reference, digests: ImageDigests, trust: Trust) -> Iterator[str]:
    """One line on what the reference is, and one for each key that vouches for it."""
    if trust.insecure or not trust.claims:
        return
    through = " → ".join(str(digest)[:19] for digest in digests.lineage)
    names = {(claim.key_id, claim.identity): claim for claim in trust.claims}
    yield f"verified {reference} → {through}"
    for claim in names.values():
        yield f"  signed as {claim.identity} by key {claim.key_id[:19]}"
