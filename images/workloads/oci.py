"""Writes an image of one layer, as an OCI layout or as ``docker save`` would.

The same files give the same bytes: entries are sorted, times are zero, JSON has sorted keys.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Entry:
    """A file (``data``), a symbolic link (``target``) or else a directory. Without a ``group`` it
    is that of the owner's number."""

    data: bytes | None = None
    target: str = ""
    mode: int = 0o755
    owner: int = 0
    group: int | None = None


@dataclass(frozen=True)
class Contents:
    """An image: entries by path without leading slash, and its execution settings."""

    entries: Mapping[str, Entry]
    architecture: str
    settings: Mapping[str, object] = field(default_factory=dict)


def with_folders(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries, and all folders on the way to them: scanners pass over what is in a folder
    that has no entry of its own."""
    folders = {str(parent) for name in entries for parent in PurePosixPath(name).parents} - {"."}
    return {**{folder: Entry() for folder in folders}, **entries}


def write_layout(contents: Contents, directory: Path, tag: str) -> None:
    """Write an OCI layout with the image under ``tag`` into an empty directory."""
    layer = _layer(contents.entries)
    config = _config(contents, layer)
    packed = gzip.compress(layer, 6, mtime=0)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _store(directory, _CONFIG, config),
            "layers": [_store(directory, _LAYER, packed)],
        }
    )
    descriptor = _store(directory, _MANIFEST, manifest)
    descriptor["platform"] = {"os": "linux", "architecture": contents.architecture}
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [descriptor]}))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def write_docker_archive(contents: Contents, path: Path, name: str) -> None:
    """Write a docker archive with the image under ``name`` (``NAME:TAG``)."""
    layer = _layer(contents.entries)
    config = _config(contents, layer)
    layer_name = f"{hashlib.sha256(layer).hexdigest()}/layer.tar"
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    listing = [{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]
    members = {config_name: config, layer_name: layer, "manifest.json": _json(listing)}
    entries = {member: Entry(data, mode=0o644) for member, data in members.items()}
    path.write_bytes(_layer(entries))


def _layer(entries: Mapping[str, Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(entries):
            entry = entries[name]
            member = tarfile.TarInfo(name)
            member.mode = entry.mode
            member.uid = entry.owner
            member.gid = entry.owner if entry.group is None else entry.group
            if entry.data is not None:
                member.size = len(entry.data)
            elif entry.target:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
            else:
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(entry.data or b""))
    return buffer.getvalue()


def _config(contents: Contents, layer: bytes) -> bytes:
    return _json(
        {
            "architecture": contents.architecture,
            "os": "linux",
            "created": _EPOCH,
            "config": dict(contents.settings),
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            "history": [{"created": _EPOCH, "created_by": "images/workloads/build.py"}],
        }
    )


def _store(directory: Path, media_type: str, data: bytes) -> dict[str, object]:
    digest = _digest(data)
    path = directory / "blobs" / "sha256" / digest.removeprefix("sha256:")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
