"""Signing an image where it lies: the reference is resolved once, and its digest signed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmrun.image.artifacts import ArtifactStore
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, UsageError
from vmrun.model.image import Descriptor, Reference, Transport
from vmrun.model.trust import SignatureFormat
from vmrun.policy.identity import DockerName
from vmrun.run.directories import StateDirectories
from vmrun.run.images import ImageOptions, absolute, artifacts, find_briefly
from vmrun.trust.keys import PrivateKey
from vmrun.trust.signing import sign_image


@dataclass(frozen=True, slots=True)
class SignedImage:
    """What was signed: every digest that led to the image, under one name."""

    identity: str
    digests: tuple[Digest, ...]
    key_id: str


def sign(
    reference: Reference,
    key: PrivateKey,
    directories: StateDirectories,
    options: ImageOptions,
    *,
    identity: str | None,
    formats: Sequence[SignatureFormat],
    annotations: Mapping[str, str],
) -> SignedImage:
    """Sign what ``reference`` leads to now: the manifest, and the indexes on the way.

    ``identity`` is the name it is signed as, by default the reference itself. Every byte is
    fetched and hashed before: nobody should sign what could not run. Raises :class:`UsageError`
    when there is no name, :class:`ImageError` and :class:`TrustError`.
    """
    reference = absolute(reference)
    name = signed_name(reference, identity)
    store = artifacts(reference, options, push=True)
    if store is None:
        raise UsageError(
            f"{reference.transport}: keeps no signatures",
            hint="push the image to a registry, or copy it into an OCI layout, and sign it there",
        )
    with find_briefly(reference, directories, options) as found:
        found.fetch()
        lineage = found.digests.lineage
    for manifest in attachable(store, lineage):
        sign_image(
            store,
            manifest,
            name,
            key,
            now=time.time(),
            formats=formats,
            annotations=annotations,
        )
    return SignedImage(name, lineage, key.public.key_id)


def signed_name(reference: Reference, identity: str | None) -> str:
    """The docker reference to sign as: given, or the registry reference, or a layout's tag that is
    one. Raises :class:`UsageError` when there is none or it has neither tag nor digest."""
    text = identity
    if text is None and reference.transport is Transport.DOCKER:
        text = str(DockerName.of(reference))
    name = DockerName.parse(text if text is not None else reference.tag or "")
    if name is None or not (name.tag or name.digest):
        raise UsageError(
            f"no name to sign {reference} as" if text is None else f"no full name: {text[:200]!r}",
            hint="give --identity HOST/REPOSITORY:TAG, the name it will be run by",
        )
    return str(name)


def attachable(store: ArtifactStore, lineage: Sequence[Digest]) -> tuple[Descriptor, ...]:
    """The manifests and indexes that something can be attached to. A layout lists the outermost
    only, and what vouches for that vouches for what it leads to."""
    found = tuple(stored.descriptor for d in lineage if (stored := store.manifest(d)))
    if not found:
        raise ImageError(
            f"{store.describe()} does not list {lineage[-1]}, so nothing can be attached to it",
            hint="sign the image where it was built, or push it to a registry first",
        )
    return found
