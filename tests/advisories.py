"""Small databases of advisories, and scans that never happened, for tests of the scan gate."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.images import TestImage, directory, file, image
from vmrun.model.digest import Digest
from vmrun.model.scan import (
    Catalogue,
    Database,
    Distribution,
    Finding,
    Package,
    PackageKind,
    Scan,
    Severity,
)

NOW = 1_790_000_000.0
RECENT = "2026-09-21T00:00:00Z"
"""A few hours before :data:`NOW`."""
IMAGE = Digest.of(b"image")
LAYER = Digest.of(b"layer")
BOOKWORM = Distribution("debian", "12", "bookworm", "Debian 12")
CRITICAL = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"

Events = Sequence[Mapping[str, str]]


def advisory(
    identifier: str = "TEST-1",
    *,
    ecosystem: str = "PyPI",
    name: str = "parrot",
    events: Events = ({"introduced": "0"}, {"fixed": "2.0"}),
    versions: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """An advisory in the OSV format about one package."""
    affected: dict[str, Any] = {"package": {"ecosystem": ecosystem, "name": name}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": list(events)}]
    if versions:
        affected["versions"] = list(versions)
    return {
        "id": identifier,
        "modified": RECENT,
        "summary": f"{name} is dead",
        "database_specific": {"severity": "HIGH"},
        "affected": [affected],
        **more,
    }


def write_database(
    folder: Path, ecosystem: str, *advisories: Mapping[str, Any] | bytes, below: str = ""
) -> Path:
    """``FOLDER/ECOSYSTEM/all.zip`` with these advisories; bytes are written as they are."""
    path = folder / below / ecosystem / "all.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, item in enumerate(advisories):
            data = item if isinstance(item, bytes) else json.dumps(item).encode()
            archive.writestr(f"{number}.json", data)
    return path


def package(
    name: str = "parrot",
    version: str = "1.0",
    kind: PackageKind = PackageKind.PYPI,
    *,
    source: str = "",
    source_version: str = "",
    managed: bool = False,
) -> Package:
    """An installed package."""
    space = "debian/" if kind is PackageKind.DEB else ""
    return Package(
        kind=kind,
        name=name,
        version=version,
        source=source or name,
        source_version=source_version or version,
        architecture="",
        path=f"/lib/{name}",
        layer=LAYER,
        purl=f"pkg:{kind}/{space}{name}@{version}",
        managed=managed,
    )


def catalogue(
    *packages: Package, distribution: Distribution | None = None, unreadable: Sequence[str] = ()
) -> Catalogue:
    """The catalogue of an image with these packages."""
    return Catalogue(IMAGE, distribution, packages, tuple(unreadable))


def finding(severity: Severity = Severity.HIGH, **fields: Any) -> Finding:
    """A finding in the package ``parrot``."""
    values: dict[str, Any] = {
        "id": "TEST-1",
        "aliases": ("CVE-2026-1",),
        "package": package(),
        "fixed": "2.0",
        "severity": severity,
        "summary": "parrot is dead",
        "source": "OSV PyPI",
    }
    return Finding(**{**values, **fields})


def scan(*findings: Finding, **fields: Any) -> Scan:
    """A scan that is an hour old, made with a database that is a day old."""
    values: dict[str, Any] = {
        "digest": IMAGE,
        "scanned_at": NOW - 3600,
        "scanner": "vmrun test",
        "distribution": None,
        "packages": 1,
        "databases": (Database("OSV PyPI", Digest.of(b"db"), NOW - 86400, 1),),
        "findings": findings,
        "ecosystems": ("PyPI",),
    }
    return Scan(**{**values, **fields})


def alpine_with_wheels(*wheels: tuple[str, str]) -> TestImage:
    """An image of Alpine 3.20 with musl, and Python packages that somebody put in."""
    return image(
        [
            directory("etc"),
            file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            file("etc/os-release", b"ID=alpine\nVERSION_ID=3.20.3\n"),
            file("lib/apk/db/installed", b"P:musl\nV:1.2.5-r0\nA:x86_64\no:musl\n\n"),
            *(
                file(
                    f"opt/{name}-{version}.dist-info/METADATA",
                    f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n".encode(),
                )
                for name, version in wheels
            ),
        ]
    )


def write_alpine_database(folder: Path, modified: str = RECENT) -> None:
    """A database for that image that has nothing against it."""
    about = {"ecosystem": "Alpine:v3.20", "name": "busybox", "modified": modified}
    write_database(folder, "Alpine:v3.20", advisory("ALPINE-1", **about))


def real_advisories() -> Path:
    """A folder of real databases: what VMRUN_TEST_ADVISORIES names. Skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared/data/osv-scanner"
    folder = Path(os.environ.get("VMRUN_TEST_ADVISORIES") or beside)
    if not folder.is_dir():
        pytest.skip("no real databases: VMRUN_TEST_ADVISORIES names none")
    return folder
