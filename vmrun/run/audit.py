"""What runs now, against what is revoked by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, StateError
from vmrun.model.image import ImageDigests
from vmrun.model.trust import TrustFiles
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.state import alive
from vmrun.trust.decision import revoked
from vmrun.trust.files import load_layers


@dataclass(frozen=True, slots=True)
class RunningImage:
    """A live guest's image; ``revoked`` says why it should not run any more, empty if it may."""

    run_id: str
    name: str
    image: str
    image_digest: str
    revoked: str


def running(
    directories: StateDirectories, trust_files: Sequence[TrustFiles]
) -> tuple[RunningImage, ...]:
    """Every live guest that has an image by now. Raises :class:`StateError` when one's intent is
    damaged, because that guest cannot be compared with anything."""
    layers = load_layers(trust_files)
    return tuple(
        RunningImage(
            intent.run_id,
            intent.name,
            intent.image,
            intent.image_digest,
            revoked(_digests(intent), intent.keys, layers) or "",
        )
        for intent in alive(directories)
        if intent.digests
    )


def _digests(intent: Intent) -> ImageDigests:
    """All of the image's digests; here they are only compared, so their roles do not matter."""
    try:
        found = tuple(Digest.parse(text) for text in intent.digests)
    except ImageError as error:
        raise StateError(
            f"the intent of run {intent.name!r} is damaged: {error.message}",
            hint=f"end that run: kill {intent.owner}",
        ) from None
    return ImageDigests(found, found[-1], ())
