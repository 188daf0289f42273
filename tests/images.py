"""Images for tests, good and bad, written byte by byte from Python.

A layer is a list of :class:`tarfile.TarInfo` with data, made by :func:`file`, :func:`link`
and so on, or raw bytes. :class:`TestImage` puts layers and a config together and writes
them as an OCI layout, an OCI archive or a docker archive; its fields can be replaced to
make any part disagree with any other.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.model.errors import VmrunError
from vmrun.model.image import Image

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"

Entry = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"", mode: int = 0o644, **fields: Any) -> Entry:
    """A regular file."""
    return _entry(name, tarfile.REGTYPE, data, mode=mode, **fields)


def directory(name: str, mode: int = 0o755, **fields: Any) -> Entry:
    """A directory."""
    return _entry(name, tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    """A symbolic link."""
    return _entry(name, tarfile.SYMTYPE, linkname=target, mode=0o777, **fields)


def hardlink(name: str, target: str, **fields: Any) -> Entry:
    """A hard link to an earlier entry."""
    return _entry(name, tarfile.LNKTYPE, linkname=target, mode=0o644, **fields)


def special(name: str, kind: bytes, **fields: Any) -> Entry:
    """A device node, FIFO or entry of any other type flag."""
    return _entry(name, kind, **fields)


def whiteout(path: str) -> Entry:
    """Hides ``path`` of the layers below."""
    parent, _, name = path.rpartition("/")
    return file(f"{parent}/.wh.{name}" if parent else f".wh.{name}")


def opaque(path: str) -> Entry:
    """Hides what the layers below have in the directory ``path``."""
    return file(f"{path}/.wh..wh..opq")


def tar(entries: Sequence[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of the entries, as they are and in that order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member, data in entries:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def sparse_file(name: str, size: int) -> bytes:
    """A tar of one file in GNU's old sparse format: a hole of ``size`` bytes."""
    member, _ = special(name, b"S")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"\x80" + size.to_bytes(11, "big")  # the end of the only, empty, extent
    header[483:495] = b"\x80" + size.to_bytes(11, "big")  # the apparent size
    return with_checksum(header) + bytes(1024)


def with_checksum(header: bytes | bytearray) -> bytes:
    """A tar header with its checksum put right."""
    fixed = bytearray(header)
    fixed[148:156] = b" " * 8
    fixed[148:156] = b"%06o\0 " % sum(fixed)
    return bytes(fixed)


def sha256(data: bytes) -> str:
    """A digest as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def dumps(value: object) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True).encode()


def descriptor(media_type: str, data: bytes, **more: object) -> dict[str, Any]:
    """A descriptor of ``data``."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


@dataclass
class LayerBlob:
    """A layer: its tar and the blob that holds it."""

    tar: bytes
    compression: str = "gzip"
    blob: bytes = b""
    media_type: str = ""

    def __post_init__(self) -> None:
        self.blob = self.blob or compress(self.tar, self.compression)
        suffix = "" if self.compression == "none" else f"+{self.compression}"
        self.media_type = self.media_type or OCI_LAYER + suffix


def compress(data: bytes, compression: str) -> bytes:
    """``data`` as a layer blob."""
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


@dataclass
class TestImage:
    """An image whose parts agree, until a test replaces one."""

    __test__ = False  # not a test case, in spite of its name

    layers: list[LayerBlob]
    settings: Mapping[str, object] = field(default_factory=dict)
    architecture: str = "amd64"
    os: str = "linux"
    tag: str = "demo"
    config: bytes = b""
    manifest: bytes = b""
    index: bytes = b""

    def __post_init__(self) -> None:
        self.config = self.config or dumps(self.config_fields())
        self.manifest = self.manifest or dumps(self.manifest_fields())
        self.index = self.index or dumps({"schemaVersion": 2, "manifests": [self.index_entry()]})

    def config_fields(self) -> dict[str, Any]:
        """The config as JSON."""
        return {
            "architecture": self.architecture,
            "os": self.os,
            "config": dict(self.settings),
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer.tar) for layer in self.layers]},
        }

    def manifest_fields(self) -> dict[str, Any]:
        """The manifest as JSON."""
        return {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, self.config),
            "layers": [descriptor(layer.media_type, layer.blob) for layer in self.layers],
        }

    def index_entry(self, **more: object) -> dict[str, Any]:
        """The manifest's descriptor for an index."""
        return descriptor(OCI_MANIFEST, self.manifest, annotations={REF_NAME: self.tag}, **more)

    def files(self) -> dict[str, bytes]:
        """The files of the OCI layout, by name."""
        blobs = [self.config, self.manifest, *(layer.blob for layer in self.layers)]
        return {
            "oci-layout": dumps({"imageLayoutVersion": "1.0.0"}),
            "index.json": self.index,
            **{blob_name(blob): blob for blob in blobs},
        }

    def write_layout(self, path: Path) -> Path:
        """Write an OCI layout."""
        return write_files(self.files(), path)

    def write_oci_archive(self, path: Path) -> Path:
        """Write an OCI archive."""
        return write_archive(self.files(), path)

    def docker_files(self, name: str = "demo:latest", *, new: bool = False) -> dict[str, bytes]:
        """The members of a docker archive; ``new`` as Docker 25 names them."""
        config = blob_name(self.config) if new else f"{sha256(self.config)[7:]}.json"
        layers = {
            blob_name(layer.blob) if new else f"{sha256(layer.tar)[7:]}/layer.tar": layer.blob
            for layer in self.layers
        }
        listing = [{"Config": config, "RepoTags": [name], "Layers": list(layers)}]
        extra = {"oci-layout": b"{}", "index.json": self.index} if new else {}
        return {**layers, config: self.config, "manifest.json": dumps(listing), **extra}

    def write_docker_archive(
        self, path: Path, name: str = "demo:latest", *, new: bool = False
    ) -> Path:
        """Write a docker archive."""
        return write_archive(self.docker_files(name, new=new), path)


def image(*layers: Sequence[Entry] | bytes, compression: str = "gzip", **more: Any) -> TestImage:
    """An image of layers that are given as entries, or as the bytes of a tar."""
    blobs = [
        LayerBlob(layer if isinstance(layer, bytes) else tar(layer), compression)
        for layer in layers
    ]
    return TestImage(blobs, **more)


def plain_image(**more: Any) -> TestImage:
    """A small image with a shell script as its only command."""
    return image(
        [
            directory("bin"),
            file("bin/hello", b"#!/bin/hello\n", mode=0o755),
            directory("etc"),
            file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:\n"),
            file("etc/group", b"root:x:0:\napp:x:1000:\nstaff:x:50:app\n"),
        ],
        **more,
    )


def busybox_image(**more: Any) -> TestImage:
    """An image of the host's statically linked busybox (package busybox-static)."""
    binary = Path("/usr/bin/busybox")
    listed = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True)
    more.setdefault("settings", {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    return image(
        [
            *(directory(name) for name in ("bin", "dev", "etc", "home", "proc", "root", "sys")),
            directory("home/app", uid=1000, gid=1000),
            directory("tmp", mode=0o1777),
            file("bin/busybox", binary.read_bytes(), mode=0o755),
            *(
                symlink(f"bin/{applet}", "busybox")
                for applet in listed.stdout.split()
                if applet != "busybox"
            ),
            file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:\n"),
            file("etc/group", b"root:x:0:\napp:x:1000:\n"),
        ],
        **more,
    )


def blob_name(data: bytes) -> str:
    """Where an OCI layout keeps a blob."""
    return f"blobs/sha256/{sha256(data)[7:]}"


def write_files(files: Mapping[str, bytes], path: Path) -> Path:
    """Write files below a directory."""
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def write_archive(files: Mapping[str, bytes], path: Path) -> Path:
    """Write files into a tar."""
    path.write_bytes(tar([file(name, data) for name, data in files.items()]))
    return path


def _entry(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> Entry:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def fetched(reference: str, path: Path, **more: Any) -> Image:
    """Fetch into a new directory below ``path``."""
    return fetch(parse_reference(reference), path / "fetched", **more)


def assert_refused(
    reference: str, path: Path, error: type[VmrunError], *contents: str, **more: Any
) -> None:
    """Fetching fails with just that error, whose message and hint hold ``contents``, and
    leaves nothing, whether the directory is new or there already."""
    ready = path / "ready"
    ready.mkdir(exist_ok=True)
    for target in (path / "new", ready):
        with pytest.raises(VmrunError) as caught:
            fetch(parse_reference(reference), target, **more)
        assert type(caught.value) is error
        assert "\n" not in caught.value.message
        for content in contents:
            assert content in f"{caught.value.message} | {caught.value.hint}"
    assert not (path / "new").exists()
    assert list(ready.iterdir()) == []
