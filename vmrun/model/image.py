"""Images as the OCI image specification describes them, after strict parsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vmrun.model.digest import Digest


class Transport(StrEnum):
    """Where an image comes from, as in containers-transports(5)."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    DOCKER_DAEMON = "docker-daemon"
    DOCKER = "docker"
    """A registry that speaks the OCI distribution protocol."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image by transport. ``path`` is a directory or file, the daemon's own reference for
    docker-daemon, or ``HOST[:PORT]/REPOSITORY`` for a registry; ``tag`` picks one image of
    several. ``digest`` pins it: the manifest, or an index that leads to it, must have it."""

    transport: Transport
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        prefix = "" if self.transport is Transport.DOCKER else f"{self.transport}:"
        tag = f":{self.tag}" if self.tag else ""
        return f"{prefix}{self.path}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def host(self) -> str:
        """A registry reference's ``HOST[:PORT]``; empty for other transports."""
        return self.path.partition("/")[0] if self.transport is Transport.DOCKER else ""

    @property
    def repository(self) -> str:
        """A registry reference's path in the registry; empty for other transports."""
        return self.path.partition("/")[2] if self.transport is Transport.DOCKER else ""


class Compression(StrEnum):
    """How a layer's tar is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """media type, digest and size (bytes) of a blob (OCI descriptor.md)."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its blob, how that is compressed, and the digest of the tar inside."""

    blob: Descriptor
    compression: Compression
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The execution part of an image's config (OCI config.md)."""

    architecture: str
    os: str
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """A line of the image's /etc/passwd, as far as choosing a user needs it."""

    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...] = ()
    """Supplementary groups: the ids of those that list the account as a member."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the flattened image has at a path: ``kind`` is one of file, dir, symlink."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str = ""


@dataclass(frozen=True, slots=True)
class FileContent:
    """Where the bytes of a file are: ``layer`` counts from the lowest, ``offset`` is in that
    layer's unpacked tar."""

    layer: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FileTree:
    """The flattened image (layers and whiteouts applied), by absolute path without a
    trailing slash (the root is ``/``). Hard links appear as files. Bytes of a name that
    are not UTF-8 are surrogate escapes, as :func:`os.fsdecode` makes them."""

    entries: Mapping[str, FileEntry]
    accounts: tuple[Account, ...] = ()
    """Lines of /etc/passwd, in order."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Lines of /etc/group, by name."""
    contents: Mapping[str, FileContent] = field(default_factory=dict)
    """The bytes of each regular file, by the same paths; hard links share theirs."""
    unpacked_bytes: int = 0
    """The most that lies on disk while the layers are applied one after the other: each
    file's size in whole pages of 4 KiB."""


@dataclass(frozen=True, slots=True)
class ImageDigests:
    """All that an image is made of, known from its manifest before any blob is read.

    ``lineage`` is what the reference led through, each hashed: indexes first, the manifest last.
    A signature of any of them is a signature of this image.
    """

    lineage: tuple[Digest, ...]
    config: Digest
    layers: tuple[Digest, ...]

    @property
    def manifest(self) -> Digest:
        """The manifest's digest: the image's only name."""
        return self.lineage[-1]

    @property
    def all(self) -> tuple[Digest, ...]:
        """Every one of them."""
        return (*self.lineage, self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Image:
    """A fetched image: every blob was hashed and lies in ``layout`` (an OCI layout)."""

    reference: Reference
    digest: Digest
    """Digest of the manifest: the only name of the image from here on."""
    manifest: Descriptor
    config_blob: Descriptor
    config: ImageConfig
    layers: tuple[Layer, ...]
    tree: FileTree
    layout: Path
    lineage: tuple[Digest, ...] = ()
    """As in :class:`ImageDigests`."""

    @property
    def digests(self) -> ImageDigests:
        """All that it is made of."""
        return ImageDigests(
            lineage=self.lineage or (self.digest,),
            config=self.config_blob.digest,
            layers=tuple(layer.blob.digest for layer in self.layers),
        )

    def blob_path(self, digest: Digest) -> Path:
        """Where the layout keeps a blob."""
        return self.layout / "blobs" / digest.algorithm / digest.hex
