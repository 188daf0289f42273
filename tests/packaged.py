"""Images that have packages, for tests: records as the package managers write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.images import Entry, fetched, file, image
from vmrun.model.scan import Catalogue
from vmrun.scan.catalogue.read import catalogue

STATUS = "var/lib/dpkg/status"
DEBIAN = b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
ALPINE = b"ID=alpine\nVERSION_ID=3.20.3\n"


def os_release(data: bytes = DEBIAN) -> Entry:
    return file("etc/os-release", data)


def stanza(name: str, version: str, *more: str, status: str = "install ok installed") -> str:
    """A paragraph of dpkg's database."""
    lines = [f"Package: {name}", f"Status: {status}", f"Version: {version}"]
    architecture = [] if any(line.startswith("Architecture:") for line in more) else ["amd64"]
    return "\n".join([*lines, *(f"Architecture: {a}" for a in architecture), *more, ""])


def dpkg(*stanzas: str, path: str = STATUS) -> Entry:
    return file(path, "\n".join(stanzas).encode())


def apk(*packages: tuple[str, str], path: str = "lib/apk/db/installed", owned: str = "") -> Entry:
    """apk's database; ``owned`` are lines of files of the last package."""
    blocks = [f"P:{name}\nV:{version}\nA:x86_64\nL:MIT\no:{name}-src" for name, version in packages]
    return file(path, ("\n\n".join(blocks) + f"\n{owned}\n").encode())


def wheel(
    name: str, version: str, folder: str = "usr/lib/python3/dist-packages", more: str = ""
) -> Entry:
    headers = "\n".join([f"Name: {name}", f"Version: {version}", *([more] if more else [])])
    text = f"Metadata-Version: 2.1\n{headers}\n\nName: not a header\n"
    return file(f"{folder}/{name}-{version}.dist-info/METADATA", text.encode())


def node(name: str, version: str, folder: str = "app/node_modules", **more: object) -> Entry:
    text = json.dumps({"name": name, "version": version, **more})
    return file(f"{folder}/{name}/package.json", text.encode())


def listed(path: Path, *layers: Sequence[Entry]) -> Catalogue:
    """The catalogue of an image of these layers."""
    path.mkdir(exist_ok=True)
    return catalogue(fetched(f"oci:{image(*layers).write_layout(path / 'layout')}", path))


def names(found: Catalogue) -> list[tuple[str, str, str]]:
    return [(p.kind.value, p.name, p.version) for p in found.packages]
