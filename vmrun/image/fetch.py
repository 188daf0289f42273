"""Fetching an image: find it, copy and hash every byte, judge every layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from vmrun.image.accounts import parse_accounts
from vmrun.image.config import check_platform, parse_config
from vmrun.image.docker_archive import DockerArchiveSource
from vmrun.image.docker_daemon import open_daemon_image
from vmrun.image.files import DirectoryFiles, open_archive
from vmrun.image.flatten import Flattener
from vmrun.image.layer import Budget, read_content, read_layer
from vmrun.image.layout import LayoutWriter, new_layout, writing
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import (
    Manifest,
    check_document_size,
    layer_compression,
    parse_manifest,
)
from vmrun.image.oci import OciSource
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.source import Resolved, Source, Transfer
from vmrun.image.store import ImageStore
from vmrun.image.tree import LookupFailed, walk
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageTooLarge
from vmrun.model.image import FileTree, Image, ImageDigests, Layer, Reference, Transport


class FoundImage:
    """An image that was resolved to its manifest, once, and of which nothing else was read."""

    def __init__(
        self,
        reference: Reference,
        source: Source,
        layout: LayoutWriter,
        architecture: str,
        limits: ImageLimits,
    ) -> None:
        self.reference = reference
        self._source = source
        self._layout = layout
        self._architecture = architecture
        self._limits = limits
        self._resolved = source.resolve()
        _must_be_pinned(reference, self._resolved)
        self._manifest = parse_manifest(self._resolved.data, self._resolved.descriptor, limits)
        check_document_size(self._manifest.config, limits)
        self.transfer = Transfer()
        """What :meth:`fetch` had to move over a network."""

    @property
    def digests(self) -> ImageDigests:
        """What it is made of: enough to decide whether it may run."""
        return ImageDigests(
            lineage=self._resolved.lineage,
            config=self._manifest.config.digest,
            layers=tuple(layer.digest for layer in self._manifest.layers),
        )

    def fetch(self) -> Image:
        """Copy and hash every blob, and judge every layer. Raises as :func:`fetch` does."""
        directory = self._layout.directory
        self.transfer = _copy(self._resolved, self._manifest, self._source, self._layout)
        with writing(directory):
            image = _judge(
                self.reference,
                self._resolved,
                self._manifest,
                self._layout,
                self._architecture,
                self._limits,
            )
        self._layout.finish(self._resolved.descriptor)
        return image


@contextmanager
def find_image(
    reference: Reference,
    directory: Path,
    *,
    architecture: str = "amd64",
    limits: ImageLimits | None = None,
    registry: RegistryOptions | None = None,
    store: ImageStore | None = None,
) -> Iterator[FoundImage]:
    """Resolve ``reference``; :meth:`FoundImage.fetch` then fills ``directory`` (new or empty).

    Between the two a caller decides whether it wants the image at all: an image that may not
    run is not even downloaded. When the block ends with an error nothing stays in ``directory``.
    What comes from a registry is kept in ``store``, by default one that goes away again.
    """
    bounds = limits or ImageLimits()
    with (
        new_layout(directory, bounds) as layout,
        _open(reference, directory, architecture, bounds, registry, store) as source,
    ):
        yield FoundImage(reference, source, layout, architecture, bounds)


def fetch(
    reference: Reference,
    directory: Path,
    *,
    architecture: str = "amd64",
    limits: ImageLimits | None = None,
    registry: RegistryOptions | None = None,
    store: ImageStore | None = None,
) -> Image:
    """Copy the image into an OCI layout in ``directory`` (new or empty) and judge it.

    Every blob's digest and size were checked, every layer's tar has the diff_id of the
    config, and no layer holds an entry that would act outside of the image. On failure
    nothing stays in ``directory``. Raises :class:`ImageError` or one of its kinds, and
    :class:`StateError` when ``directory`` cannot be written.
    """
    with find_image(
        reference,
        directory,
        architecture=architecture,
        limits=limits,
        registry=registry,
        store=store,
    ) as found:
        return found.fetch()


def _must_be_pinned(reference: Reference, resolved: Resolved) -> None:
    if reference.digest is not None and reference.digest not in resolved.lineage:
        raise DigestMismatch(
            f"{reference} leads to {resolved.descriptor.digest}, not to the digest it names",
            hint="the image was changed; find out why before you use its new digest",
        )


@contextmanager
def _open(
    reference: Reference,
    scratch: Path,
    architecture: str,
    limits: ImageLimits,
    registry: RegistryOptions | None,
    store: ImageStore | None,
) -> Iterator[Source]:
    if reference.transport is Transport.DOCKER_DAEMON:
        with open_daemon_image(reference.path, scratch, limits) as daemon:
            yield daemon
    elif reference.transport is Transport.DOCKER:
        # Not loaded for the other transports: it takes a tenth of a second.
        from vmrun.image.registry.repository import Repository
        from vmrun.image.registry.source import RegistrySource

        repository = Repository(reference, registry or RegistryOptions(), limits=limits)
        with _store(store, scratch) as blobs:
            yield RegistrySource(repository, blobs, architecture, limits)
    else:
        with _open_path(reference, scratch, architecture, limits) as files:
            yield files


@contextmanager
def _store(store: ImageStore | None, scratch: Path) -> Iterator[ImageStore]:
    if store is not None:
        yield store
        return
    with writing(scratch), TemporaryDirectory(prefix="vmrun-store.", dir=scratch.parent) as path:
        yield ImageStore(Path(path))


@contextmanager
def _open_path(
    reference: Reference, scratch: Path, architecture: str, limits: ImageLimits
) -> Iterator[Source]:
    path, tag = Path(reference.path), reference.tag
    if reference.transport is Transport.OCI:
        yield OciSource(DirectoryFiles(path), tag, architecture, limits)
        return
    with open_archive(path, scratch, limits) as files:
        if reference.transport is Transport.OCI_ARCHIVE:
            yield OciSource(files, tag, architecture, limits)
        else:
            yield DockerArchiveSource(files, tag, limits)


def _copy(resolved: Resolved, manifest: Manifest, source: Source, layout: LayoutWriter) -> Transfer:
    descriptor = resolved.descriptor
    transfer = source.prepare((manifest.config, *manifest.layers))
    layout.add(descriptor, BytesIO(resolved.data), f"manifest {descriptor.digest}")
    for blob in (manifest.config, *manifest.layers):
        with source.open(blob) as stream:
            layout.add(blob, stream, source.describe(blob))
    return transfer


def _judge(
    reference: Reference,
    resolved: Resolved,
    manifest: Manifest,
    layout: LayoutWriter,
    architecture: str,
    limits: ImageLimits,
) -> Image:
    where = f"config {manifest.config.digest}"
    config, diff_ids = parse_config(
        layout.blob_path(manifest.config.digest).read_bytes(), where, limits
    )
    check_platform(config, where, architecture)
    layers = _layers(manifest, diff_ids, where)
    return Image(
        reference=reference,
        digest=resolved.descriptor.digest,
        manifest=resolved.descriptor,
        config_blob=manifest.config,
        config=config,
        layers=layers,
        tree=_tree(layers, layout, limits),
        layout=layout.directory,
        lineage=resolved.lineage,
    )


def _layers(manifest: Manifest, diff_ids: tuple[Digest, ...], where: str) -> tuple[Layer, ...]:
    if len(diff_ids) != len(manifest.layers):
        raise ImageError(
            f"{where}: lists {len(diff_ids)} diff_ids, the manifest {len(manifest.layers)} layers",
            hint="the image's manifest and config do not belong together; build it again",
        )
    return tuple(
        Layer(blob, layer_compression(blob), diff_id)
        for blob, diff_id in zip(manifest.layers, diff_ids, strict=True)
    )


def _tree(layers: tuple[Layer, ...], layout: LayoutWriter, limits: ImageLimits) -> FileTree:
    budget = Budget(limits)
    flattener = Flattener()
    for layer in layers:
        entries = read_layer(layout.blob_path(layer.blob.digest), layer, budget)
        flattener.apply(entries, f"layer {layer.blob.digest}")
    accounts, groups = parse_accounts(
        _account_file("/etc/passwd", flattener, layers, layout, limits),
        _account_file("/etc/group", flattener, layers, layout, limits),
    )
    return FileTree(
        entries=flattener.entries,
        accounts=accounts,
        groups=groups,
        contents=flattener.located(),
        unpacked_bytes=flattener.peak_bytes,
    )


def _account_file(
    path: str,
    flattener: Flattener,
    layers: tuple[Layer, ...],
    layout: LayoutWriter,
    limits: ImageLimits,
) -> bytes:
    """The file's bytes in the final tree; none when the image has no such file."""
    try:
        content = flattener.contents.get(walk(flattener.entries, path))
    except LookupFailed:
        content = None
    if content is None:
        return b""
    if content.size > limits.account_file:
        raise ImageTooLarge(
            f"{path} of the image has {content.size} bytes, the limit is {limits.account_file}"
        )
    layer = layers[content.layer]
    return read_content(layout.blob_path(layer.blob.digest), layer, content.offset, content.size)
