"""How much an image may cost before vmrun gives up on it."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on untrusted input, all inclusive. Sizes are bytes.

    The defaults hold every image that a guest of ordinary size could run, and stop a
    hostile one long before the host's disk or memory is at stake.
    """

    document: int = 4 * MIB
    """An index, manifest or config. 4 MiB is also what registries accept (OCI
    distribution specification, "Pushing Manifests")."""
    depth: int = 32
    """Nesting of JSON values."""
    indexes: int = 4
    """Image indexes that point to further indexes."""
    manifests: int = 1024
    """Descriptors in one index."""
    layers: int = 128
    blobs: int = 8 * GIB
    """All blobs of the image together, as stored (compressed)."""
    members: int = 100_000
    """Members of an archive that holds an image."""
    layer_unpacked: int = 8 * GIB
    unpacked: int = 8 * GIB
    """The tar streams of all layers together."""
    ratio: int = 200
    """Unpacked bytes for each compressed byte, judged above ``ratio_floor``."""
    ratio_floor: int = 64 * MIB
    entries: int = 200_000
    """Entries of all layers together."""
    path: int = 4095
    """Bytes of a path or link target (PATH_MAX without its NUL)."""
    path_depth: int = 256
    """Components of a path."""
    name: int = 255
    """Bytes of one component of a path (NAME_MAX)."""
    account_file: int = MIB
    """/etc/passwd or /etc/group."""
