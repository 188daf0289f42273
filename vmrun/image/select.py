"""Picking one manifest: by tag among a layout's, by platform among an index's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmrun.image.config import wrong_platform
from vmrun.image.document import parse_object
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    IndexEntry,
    check_document_size,
    parse_index,
)
from vmrun.image.source import Resolved
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageNotFound
from vmrun.model.image import Descriptor

_SHOWN = 20
_LOOKED_THROUGH = 32
"""Entries without a tag in question: a layout with more images than this needs one."""


def select(
    index: bytes,
    where: str,
    tag: str | None,
    architecture: str,
    read: Callable[[Descriptor], bytes],
    limits: ImageLimits,
) -> Resolved:
    """Follow a layout's ``index.json`` to the manifest for ``tag`` and the platform.

    ``read`` gives the bytes of a further index or of a manifest; they are checked here.
    """
    entries: Sequence[IndexEntry] = parse_index(index, where, None, limits)
    if tag is None:
        entries = _without_attached(_images(entries), read, limits)
    tagged = _tagged(entries, where, tag)
    descriptor = _for_platform(tagged, where, architecture)
    return follow(descriptor, where, architecture, read, limits)


def follow(
    descriptor: Descriptor,
    where: str,
    architecture: str,
    read: Callable[[Descriptor], bytes],
    limits: ImageLimits,
) -> Resolved:
    """Go from a manifest or an index to the manifest for the platform, hashing each step."""
    indexes: list[Digest] = []
    for _ in range(limits.indexes):
        data = _checked(descriptor, read, limits)
        if descriptor.media_type in MANIFEST_TYPES:
            return Resolved(descriptor, data, tuple(indexes))
        indexes.append(descriptor.digest)
        inner = f"index {descriptor.digest}"
        entries = parse_index(data, inner, descriptor, limits)
        descriptor = _for_platform(_images(entries), inner, architecture)
    raise ImageError(f"{where}: more than {limits.indexes - 1} indexes, one in another")


def _checked(
    descriptor: Descriptor, read: Callable[[Descriptor], bytes], limits: ImageLimits
) -> bytes:
    if descriptor.media_type not in INDEX_TYPES | MANIFEST_TYPES:
        raise ImageError(f"{descriptor.digest} is {descriptor.media_type[:120]!r}, not an image")
    check_document_size(descriptor, limits)
    data = read(descriptor)
    if len(data) != descriptor.size:
        raise ImageError(
            f"{descriptor.digest} has {len(data)} bytes, its descriptor says {descriptor.size}",
            hint="the image is truncated or damaged; build or save it again",
        )
    hasher = descriptor.digest.hasher()
    hasher.update(data)
    found = Digest(descriptor.digest.algorithm, hasher.hexdigest())
    if found != descriptor.digest:
        raise DigestMismatch(
            f"manifest or index {descriptor.digest}: its bytes hash to {found}",
            hint="the image is damaged or was tampered with; fetch it again from its origin",
        )
    return data


def _images(entries: Sequence[IndexEntry]) -> list[IndexEntry]:
    return [
        entry
        for entry in entries
        if not entry.attestation and entry.descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES
    ]


def _without_attached(
    images: list[IndexEntry], read: Callable[[Descriptor], bytes], limits: ImageLimits
) -> list[IndexEntry]:
    """Those that are images of their own. What is attached to another manifest says so in its
    ``subject`` (OCI image-spec, manifest.md), and not every tool repeats that in the index."""
    if not 1 < len(images) <= _LOOKED_THROUGH:
        return images
    # One that names a platform is an image, and may be of a platform that is not even here.
    return [
        entry
        for entry in images
        if entry.platform or not _has_subject(entry.descriptor, read, limits)
    ]


def _has_subject(
    descriptor: Descriptor, read: Callable[[Descriptor], bytes], limits: ImageLimits
) -> bool:
    try:
        data = _checked(descriptor, read, limits)
    except ImageNotFound:
        return False
    return "subject" in parse_object(data, f"manifest {descriptor.digest}", limits)


def _tagged(entries: Sequence[IndexEntry], where: str, tag: str | None) -> list[IndexEntry]:
    images = _images(entries)
    tags = sorted({entry.ref_name for entry in images if entry.ref_name})
    if tag is not None:
        found = [entry for entry in images if entry.ref_name == tag]
        if not found:
            raise ImageNotFound(f"{where}: no image tagged {tag!r}", hint=_tags_hint(tags))
        return found
    if not images:
        raise ImageNotFound(f"{where}: it holds no image", hint="build or save the image again")
    if len({entry.ref_name for entry in images}) > 1:
        raise ImageError(f"{where}: holds several images", hint=_tags_hint(tags))
    return images


def _for_platform(entries: Sequence[IndexEntry], where: str, architecture: str) -> Descriptor:
    """The entry for linux on ``architecture``. One that names no platform is taken when it
    is alone: its config will tell."""
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0].descriptor
    fitting = [
        entry
        for entry in entries
        if entry.platform
        and (entry.platform.os, entry.platform.architecture) == ("linux", architecture)
    ]
    if not fitting:
        names = [str(entry.platform or "unknown") for entry in entries]
        found = ", ".join(dict.fromkeys(names)) or "none"
        raise wrong_platform(where, architecture, found)
    # The plainest variant runs on every processor of the architecture.
    fitting.sort(key=lambda entry: entry.platform.variant if entry.platform else "")
    best = fitting[0]
    same = {entry.descriptor for entry in fitting if entry.platform == best.platform}
    if len(same) > 1:
        raise ImageError(
            f"{where}: holds several images for {best.platform}",
            hint="give each image a tag of its own",
        )
    return best.descriptor


def _tags_hint(tags: Sequence[str]) -> str:
    if not tags:
        return "its images have no tags; give each one a tag"
    more = f" and {len(tags) - _SHOWN} more" if len(tags) > _SHOWN else ""
    return f"it has: {', '.join(tags[:_SHOWN])}{more}"
