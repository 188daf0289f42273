"""What a run is about to make, written down before it is made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vmrun.model.tenant import Share

INTENT = "intent.json"


@dataclass(frozen=True, slots=True)
class Intent:
    """What a run is about to create; enough to remove it when the run is dead."""

    run_id: str
    name: str
    tenant: str
    uuid: str
    domain: str
    slot: int
    connect: str
    owner: int
    created: float
    kept_until: float = 0.0
    image: str = ""
    """The reference of what it runs, once that was verified."""
    image_digest: str = ""
    digests: tuple[str, ...] = ()
    """All digests of that image, and ``keys``, the ids of the keys that vouched for it: what a
    later revocation is compared with."""
    keys: tuple[str, ...] = ()
    shared: bool = False
    """A tenant's guest: it holds several containers, each a run of its own."""
    memory: int = 0
    """What the run takes of its tenant's quota; ``passing``, ``cpus`` and ``disk`` likewise
    (:class:`~vmrun.model.tenant.Share`)."""
    passing: int = 0
    cpus: float = 0.0
    disk: int = 0
    guest: str = ""
    """The tenant's guest that it is in, by run id; empty for one that has a guest of its own."""

    @property
    def share(self) -> Share:
        """What the run takes of its tenant's quota."""
        return Share(self.memory, self.passing, float(self.cpus), self.disk)


def read_intent(path: Path) -> Intent | None:
    """The intent in a guest's directory; None for none, and for what vmrun did not write."""
    try:
        fields = json.loads((path / INTENT).read_text())
        lists = {name: tuple(fields.get(name, ())) for name in ("digests", "keys")}
        intent = Intent(**(fields | lists))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return intent if _well_formed(intent, path) else None


def write_intent(path: Path, intent: Intent) -> None:
    """Write it, whole or not at all. Raises :class:`OSError`."""
    partial = path / f"{INTENT}.partial"
    partial.write_text(json.dumps(asdict(intent), indent=1))
    partial.chmod(0o600)
    partial.replace(path / INTENT)


def _well_formed(intent: Intent, path: Path) -> bool:
    """Whether it is this directory's, with fields of the types that they must have."""
    texts = (
        *(intent.name, intent.tenant, intent.uuid, intent.connect, intent.image, intent.guest),
        *(intent.image_digest, *intent.digests, *intent.keys),
    )
    numbers = (intent.kept_until, intent.created, intent.cpus)
    counts = (intent.slot, intent.memory, intent.passing, intent.disk)
    return (
        intent.run_id == path.name
        and intent.domain == f"vmrun-{path.name}"
        and all(isinstance(text, str) for text in texts)
        and all(type(number) in (int, float) for number in numbers)
        and type(intent.owner) is int
        and all(type(count) is int for count in counts)
        and type(intent.shared) is bool
    )
