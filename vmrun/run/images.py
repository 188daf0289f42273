"""From a reference to an image that may run: found, verified, fetched.

The digest that the reference led to, once, is the one whose signatures are checked, whose bytes
are hashed, whose packages are scanned, and that runs. Nothing here creates a guest.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmrun.image.artifacts import ArtifactStore
from vmrun.image.fetch import FoundImage, find_image
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.store import ImageStore
from vmrun.model.digest import Digest
from vmrun.model.image import ImageDigests, Reference, Transport
from vmrun.model.trust import Trust, TrustFiles
from vmrun.policy.scopes import covers
from vmrun.policy.signature_policy import Signed
from vmrun.policy.trust_rules import CatalogueRule
from vmrun.run.directories import StateDirectories
from vmrun.trust.decision import Subject, decide, record
from vmrun.trust.files import TrustLayer, load_layers, read_root
from vmrun.trust.ledger import Ledger
from vmrun.trust.signatures import Signatures, collect


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How to reach images, who may vouch for them, and where advisories are."""

    registry: RegistryOptions
    trust_files: tuple[TrustFiles, ...]
    advisories: Path

    def layers(self) -> tuple[TrustLayer, ...]:
        """The policies and rules that apply, the site's first."""
        return load_layers(self.trust_files)


@dataclass(frozen=True, slots=True)
class Verified:
    """Why an image may run, and what the user should be told of that."""

    trust: Trust
    notes: tuple[str, ...]
    subject: Subject

    def remember(self, directories: StateDirectories) -> None:
        """Let the ledger know that this image was accepted and is about to run."""
        record(self.subject, self.trust, Ledger(directories.ledger))


@contextmanager
def find(
    reference: Reference, directory: Path, directories: StateDirectories, options: ImageOptions
) -> Iterator[FoundImage]:
    """The image behind ``reference``, resolved once; blobs of registries are kept in the store."""
    with find_image(
        absolute(reference),
        directory,
        registry=options.registry,
        store=ImageStore(directories.images),
    ) as found:
        yield found


@contextmanager
def find_briefly(
    reference: Reference, directories: StateDirectories, options: ImageOptions
) -> Iterator[FoundImage]:
    """The same, for a look: what is fetched of it goes away with the block."""
    with (
        tempfile.TemporaryDirectory(prefix="vmrun-image.") as scratch,
        find(reference, Path(scratch) / "image", directories, options) as found,
    ):
        yield found


def verify(
    reference: Reference,
    digests: ImageDigests,
    layers: Sequence[TrustLayer],
    directories: StateDirectories,
    options: ImageOptions,
) -> Verified:
    """Decide about an image by its digests, before any of its blobs is read.

    Raises :class:`Refused` with the reason, :class:`ImageError` when its signatures cannot be
    looked for.
    """
    reference = absolute(reference)
    signatures = Signatures()
    if _needs_signatures(reference, layers):
        store = artifacts(reference, options)
        if store is not None:
            signatures = collect(store, digests.lineage)
    subject = Subject(reference, digests, signatures)
    now = time.time()
    trust, notes = decide(subject, layers, Ledger(directories.ledger), now=now)
    current = _ask_catalogues(reference, digests, layers, directories, options, now)
    told = (*notes, current) if current else notes
    return Verified(replace(trust, catalogue=current), told, subject)


def _ask_catalogues(
    reference: Reference,
    digests: ImageDigests,
    layers: Sequence[TrustLayer],
    directories: StateDirectories,
    options: ImageOptions,
    now: float,
) -> str:
    """What every catalogue that answers for the name says of it; all of them must agree."""
    rules = [
        rule
        for layer in layers
        for rule in layer.rules.catalogues
        if any(covers(scope, str(reference)) for scope in rule.scopes)
    ]
    if not rules:
        return ""
    from vmrun.trust.catalogue import catalogue_name, check_catalogue

    name = catalogue_name(reference)
    if name is None:
        return ""
    said = [
        check_catalogue(
            name,
            digests.lineage,
            source=rule.source,
            root=read_root(Path(rule.root)),
            state=directories.catalogues / _folder(rule),
            now=now,
            cert_dirs=options.registry.cert_dirs,
        )
        for rule in rules
    ]
    return "; ".join(said)


def _folder(rule: CatalogueRule) -> str:
    """A folder of each catalogue's own, also where two files use the same name for different
    ones: what one remembers must not push out what the other does."""
    return f"{rule.name}-{Digest.of(f'{rule.source} {rule.root}'.encode()).short}"


def artifacts(
    reference: Reference, options: ImageOptions, *, push: bool = False
) -> ArtifactStore | None:
    """Where the signatures of an image are; None where its transport can keep none."""
    if reference.transport is Transport.DOCKER:
        from vmrun.image.registry.artifacts import open_artifacts

        return open_artifacts(reference, options.registry, push=push)
    if reference.transport is Transport.OCI:
        return LayoutArtifacts(Path(reference.path))
    return None


def absolute(reference: Reference) -> Reference:
    """The reference with the real path of its directory or file, which is what scopes name."""
    if reference.transport in (Transport.OCI, Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE):
        return replace(reference, path=os.path.realpath(reference.path))
    return reference


def _needs_signatures(reference: Reference, layers: Sequence[TrustLayer]) -> bool:
    return any(
        isinstance(requirement, Signed)
        for layer in layers
        if layer.policy
        for requirement in layer.policy.requirements(reference)[1]
    )
