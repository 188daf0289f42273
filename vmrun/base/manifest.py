"""The manifest of a base: its identity. The digest of the manifest is the digest of the base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmrun.model.base import Base, BaseFile, Flavour, Verity
from vmrun.model.digest import Digest
from vmrun.model.errors import BaseError, ImageError

CONTRACT = "vmrun/1"
FILES = ("initrd.img", "root.img", "vmlinuz")
MAX_MANIFEST_BYTES = 1 << 20
_MAX_FILE_BYTES = 8 << 30
_HEX_256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]{0,127}")
_KEYS = {
    "architecture",
    "contract",
    "files",
    "flavour",
    "kernel_release",
    "packages",
    "recipe",
    "verity",
}


def serialise(base: Base) -> bytes:
    """The canonical JSON of a manifest: sorted keys, no spaces, one newline at the end."""
    document = {
        "architecture": base.architecture,
        "contract": base.contract,
        "files": {
            name: {"digest": str(file.digest), "size": file.size}
            for name, file in base.files.items()
        },
        "flavour": str(base.flavour),
        "kernel_release": base.kernel_release,
        "packages": dict(base.packages),
        "recipe": str(base.recipe),
        "verity": {
            "data_blocks": base.verity.data_blocks,
            "hash_start": base.verity.hash_start,
            "root_hash": base.verity.root_hash,
            "salt": base.verity.salt,
        },
    }
    return _canonical(document)


def parse(data: bytes, directory: Path) -> Base:
    """Read a manifest strictly: exactly the known keys, canonical form, plausible values."""
    try:
        return _parse(data, directory)
    except (ValueError, TypeError, KeyError, RecursionError, ImageError) as error:
        raise BaseError(
            f"malformed manifest in {directory}: {error}",
            hint="build the base again: vmrun base build --flavour FLAVOUR",
        ) from error


def _parse(data: bytes, directory: Path) -> Base:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError("too large")
    document = _table(json.loads(data), _KEYS, "the manifest")
    if _canonical(document) != data:
        raise ValueError("not in canonical form")
    if document["contract"] != CONTRACT:
        raise ValueError(f"contract {document['contract']!r}, expected {CONTRACT}")
    files = _table(document["files"], set(FILES), "files")
    packages = document["packages"]
    if not isinstance(packages, dict):
        raise ValueError("packages: not a table")
    return Base(
        digest=Digest.of(data),
        flavour=Flavour(document["flavour"]),
        architecture=_name(document["architecture"]),
        kernel_release=_name(document["kernel_release"]),
        contract=CONTRACT,
        verity=_verity(document["verity"]),
        files={name: _file(name, files[name]) for name in FILES},
        packages={_name(name): _name(text, _VERSION) for name, text in packages.items()},
        directory=directory,
        recipe=Digest.parse(document["recipe"]),
    )


def _canonical(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode() + b"\n"


def _table(value: object, keys: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise ValueError(f"{what}: not exactly the keys {', '.join(sorted(keys))}")
    return value


def _file(name: str, value: object) -> BaseFile:
    table = _table(value, {"digest", "size"}, name)
    digest = Digest.parse(table["digest"])
    if digest.algorithm != "sha256":
        raise ValueError(f"{name}: not a sha256 digest")
    return BaseFile(name, digest, _integer(table["size"], _MAX_FILE_BYTES))


def _verity(value: object) -> Verity:
    table = _table(value, {"data_blocks", "hash_start", "root_hash", "salt"}, "verity")
    for key in ("root_hash", "salt"):
        if not isinstance(table[key], str) or not _HEX_256.fullmatch(table[key]):
            raise ValueError(f"verity: {key} is not 64 hex digits")
    limit = _MAX_FILE_BYTES // 4096
    return Verity(
        root_hash=table["root_hash"],
        salt=table["salt"],
        data_blocks=_integer(table["data_blocks"], limit),
        hash_start=_integer(table["hash_start"], limit),
    )


def _integer(value: object, limit: int) -> int:
    if type(value) is not int or not 0 < value <= limit:
        raise ValueError(f"{value!r} is not a number from 1 to {limit}")
    return value


def _name(value: object, pattern: re.Pattern[str] = _NAME) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a name or version")
    return value
