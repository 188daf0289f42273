"""The catalogue against others that read the same records: syft, and dpkg itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.images import Entry, directory, fetched, file, image, symlink
from tests.packaged import ALPINE, dpkg, node, os_release, stanza, wheel
from vmrun.image.contents import read_files
from vmrun.model.image import Image
from vmrun.model.scan import Catalogue
from vmrun.scan.catalogue.read import catalogue

BUILD = Path(__file__).parents[2] / "images" / "workloads" / "build.py"
SYFT = shutil.which("syft") or shutil.which("syft", path=str(Path(sys.executable).parent))
KINDS = {"deb": "deb", "apk": "apk", "python": "pypi", "npm": "npm"}
Names = set[tuple[str, str, str]]

needs_syft = pytest.mark.skipif(SYFT is None, reason="syft is not installed")


@dataclass(frozen=True)
class Built:
    """An image in a layout, and what we find in it."""

    layout: Path
    image: Image
    catalogue: Catalogue

    @property
    def names(self) -> Names:
        return {(p.kind.value, p.name, p.version) for p in self.catalogue.packages}


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo image with a whole Debian."""
    path = tmp_path_factory.mktemp("debian")
    done = subprocess.run(
        [sys.executable, BUILD, "debian", path / "layout"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode and ("apt-get" in done.stderr or "pip" in done.stderr):
        pytest.skip("packages cannot be had here")
    assert done.returncode == 0, done.stderr
    found = fetched(f"oci:{path / 'layout'}:demo", path)
    return Built(path / "layout", found, catalogue(found))


def built(path: Path, *layers: list[Entry]) -> Built:
    layout = image(*layers).write_layout(path / "layout")
    found = fetched(f"oci:{layout}", path)
    return Built(layout, found, catalogue(found))


def syft(layout: Path) -> list[dict[str, Any]]:
    """What syft finds of the kinds that we know, too. It asks nobody for newer versions."""
    done = subprocess.run(
        [str(SYFT), f"oci-dir:{layout}", "-o", "json"],
        check=True,
        capture_output=True,
        timeout=180,
        env={**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["artifacts"]
    return [artifact for artifact in found if artifact["type"] in KINDS]


def names(artifacts: list[dict[str, Any]]) -> Names:
    return {(KINDS[a["type"]], a["name"], a["version"]) for a in artifacts}


def records(artifact: dict[str, Any]) -> set[str]:
    return {location["path"] for location in artifact["locations"]}


@needs_syft
def test_debian(debian: Built) -> None:
    """syft also reads the note that Debian's systemd leaves in its programs and libraries (ELF,
    .note.package), and takes that for a package of the source's name."""
    artifacts = syft(debian.layout)
    noted = [a for a in artifacts if a["metadataType"] == "elf-binary-package-note-json-payload"]
    assert {a["name"] for a in noted} <= {"systemd"}
    recorded = [a for a in artifacts if a not in noted]
    assert debian.names == names(recorded)
    assert len([name for name in debian.names if name[0] == "deb"]) > 100
    theirs = {a["purl"].partition("&upstream=")[0] for a in recorded}
    assert {package.purl for package in debian.catalogue.packages} == theirs
    assert debian.catalogue.unreadable == ()
    assert debian.catalogue.unseen == ()


@needs_syft
def test_sources_of_debian_are_those_of_syft(debian: Built) -> None:
    """Advisories name sources; syft leaves out those that are called like their package."""
    ours = {p.name: (p.source, p.source_version) for p in debian.catalogue.packages if p.source}
    checked = 0
    for artifact in syft(debian.layout):
        if artifact["metadataType"] == "dpkg-db-entry":
            said = artifact["metadata"]
            version = said.get("sourceVersion") or artifact["version"]
            assert ours[artifact["name"]] == (said.get("source") or artifact["name"], version)
            checked += 1
    assert checked > 100


def test_dpkg_reads_the_same_database(debian: Built, tmp_path: Path) -> None:
    """The image's database as dpkg reads it: the packages, and who brought which record."""
    if shutil.which("dpkg-query") is None:
        pytest.skip("needs dpkg")
    info = "/var/lib/dpkg/"
    for one in read_files(
        debian.image, lambda path: path.startswith(info), largest=1 << 26, total=1 << 28
    ):
        path = tmp_path / one.path.removeprefix(info)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.data)
    query = ["dpkg-query", f"--admindir={tmp_path}"]
    form = "${Package} ${Version} ${source:Package} ${source:Version} ${Architecture}\n"
    said = _output([*query, "--show", f"--showformat={form}"])
    assert {tuple(line.split()) for line in said.splitlines()} == {
        (p.name, p.version, p.source, p.source_version, p.architecture)
        for p in debian.catalogue.packages
        if p.kind == "deb"
    }
    python = [p for p in debian.catalogue.packages if p.kind == "pypi"]
    managed = {p.path for p in python if p.managed}
    version = next(
        p.name for p in debian.catalogue.packages if re.fullmatch(r"python3\.\d+", p.name)
    )
    assert {p.path for p in python} == managed | {
        f"/usr/local/lib/{version}/dist-packages/{name}.dist-info/METADATA"
        for name in ("Jinja2-2.11.2", "requests-2.19.1", "urllib3-1.24.1")
    }
    assert len(_output([*query, "--search", *sorted(managed)]).splitlines()) == len(managed) > 3


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


@needs_syft
def test_alpine_and_npm(tmp_path: Path) -> None:
    """syft lists the application's own package.json, too, which nobody has installed."""
    installed = b"""\
C:Q1p78yvTLG094tHE1+dToJGbmYzQE=
P:musl
V:1.2.5-r0
A:x86_64
S:407278
I:667648
T:the musl c library (libc) implementation
U:https://musl.libc.org/
L:MIT
o:musl
m:Timo <timo@example.com>
t:1711406480
c:d1f3ab
p:so:libc.musl-x86_64.so.1=1
F:lib
R:ld-musl-x86_64.so.1
a:0:0:755
Z:Q1NB5cRNMfXL9pD7CFyGVCrWYnQqk=

C:Q1b8Whg0wzT21K1mHOFlZWrYfYGHc=
P:libcrypto3
V:3.3.2-r0
A:x86_64
L:Apache-2.0
o:openssl
D:so:libc.musl-x86_64.so.1

"""
    found = built(
        tmp_path,
        [
            os_release(ALPINE),
            file("lib/apk/db/installed", installed),
            file("app/package.json", b'{"name": "app", "version": "1.0.0"}'),
            node("lodash", "4.17.20"),
            node("@types/node", "20.1.0", "app/node_modules/lodash/node_modules"),
            wheel("zope.interface", "5.0", "opt/venv/lib/python3.12/site-packages"),
        ],
    )
    theirs = syft(found.layout)
    own = [a for a in theirs if records(a) == {"/app/package.json"}]
    assert names(own) == {("npm", "app", "1.0.0")}
    assert found.names | names(own) == _normal(names(theirs))
    assert len(found.names) == 5


def _normal(theirs: Names) -> Names:
    """syft gives names of Python as the record has them, we as PEP 503 normalises them."""
    return {
        (kind, name.replace(".", "-") if kind == "pypi" else name, version)
        for kind, name, version in theirs
    }


@needs_syft
def test_layers_and_links(tmp_path: Path) -> None:
    """Whiteouts, a database that is replaced, one behind a link, and states of packages. syft also
    lists what was removed but for its configuration files."""
    lower = [
        os_release(),
        symlink("var/lib/dpkg/status", "../../../opt/status"),
        dpkg(stanza("bash", "5.0-1"), path="opt/status"),
        wheel("six", "1.16.0"),
    ]
    upper = [
        dpkg(
            stanza("bash", "5.2-1"),
            stanza("gone", "1-1", status="deinstall ok config-files"),
            path="opt/status",
        ),
        file("usr/lib/python3/dist-packages/.wh.six-1.16.0.dist-info"),
    ]
    found = built(tmp_path, lower, upper)
    assert found.names == {("deb", "bash", "5.2-1")}
    assert names(syft(found.layout)) - found.names == {("deb", "gone", "1-1")}


@needs_syft
@pytest.mark.parametrize("name", ["busybox", "vulnerable"])
def test_demo_images(tmp_path: Path, name: str) -> None:
    done = subprocess.run([sys.executable, BUILD, name, tmp_path / "layout"], check=False)
    if done.returncode:
        pytest.skip("packages cannot be had here")
    found = catalogue(fetched(f"oci:{tmp_path / 'layout'}:demo", tmp_path))
    assert (found.unreadable, found.unseen) == ((), ())
    ours = {(p.kind.value, p.name, p.version) for p in found.packages}
    assert ours == names(syft(tmp_path / "layout"))
    assert len(ours) == (1 if name == "busybox" else 2)


@needs_syft
def test_distroless(tmp_path: Path) -> None:
    record = b"Package: libssl3\nVersion: 3.0.11-1\nArchitecture: amd64\nSource: openssl\n"
    found = built(
        tmp_path,
        [
            os_release(),
            # syft does not see them without entries for their folders.
            *map(directory, ("var", "var/lib", "var/lib/dpkg", "var/lib/dpkg/status.d")),
            file("var/lib/dpkg/status.d/libssl3", record),
            file("var/lib/dpkg/status.d/libssl3.md5sums", b"d41d8  usr/lib/libssl.so.3\n"),
        ],
    )
    assert found.names == {("deb", "libssl3", "3.0.11-1")} == names(syft(found.layout))
