"""The bill of materials: valid by the official schema, the same bytes each time, and open about
what it does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.images import file, image
from tests.packaged import apk, dpkg, listed, node, os_release, stanza, wheel
from vmrun.cli.main import make_app
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.model.digest import Digest
from vmrun.model.errors import StateError, UsageError, VmrunError
from vmrun.model.scan import Distribution, PackageKind
from vmrun.scan.catalogue.read import catalogue
from vmrun.scan.cyclonedx import cyclonedx
from vmrun.scan.purl import oci_purl, purl

LAYER = [
    os_release(),
    dpkg(
        stanza("libc6", "2.36-9+deb12u4", "Source: glibc"),
        stanza("libc6", "2.36-9+deb12u4", "Source: glibc", "Architecture: i386"),
    ),
    apk(("musl", "1.2.5-r0")),
    wheel("six", "1.16.0", more="License-Expression: MIT"),
    node("@types/node", "20.1.0", license="MIT"),
]
GAPS = [file("app/a.jar"), file("app/server", b"\x7fELF", mode=0o755)]


def document(path: Path, *entries: Any, created: float = 1_700_000_000.0) -> dict[str, Any]:
    layout = image(list(entries)).write_layout(path / "layout")
    found = fetch(parse_reference(f"oci:{layout}:demo"), path / "fetched")
    return cyclonedx(catalogue(found), found, created=created)


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in component["properties"]}


@pytest.mark.parametrize("entries", [LAYER, [*LAYER, *GAPS], [], [os_release(b"")]])
def test_the_official_schema(tmp_path: Path, entries: list[Any]) -> None:
    json_validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = json_validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    text = json.dumps(document(tmp_path, *entries))
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"container"', '"vessel"')) is not None


def test_what_it_says_of_a_package(tmp_path: Path) -> None:
    found = document(tmp_path, *LAYER)
    libc, six = (
        next(c for c in found["components"] if c["name"] == name) for name in ("libc6", "six")
    )
    layer = properties(libc)["vmrun:layer"]
    Digest.parse(layer)
    assert libc["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12"
    assert properties(libc) == {
        "vmrun:path": "/var/lib/dpkg/status",
        "vmrun:layer": layer,
        "vmrun:source": "glibc 2.36-9+deb12u4",
    }
    assert "licenses" not in libc
    assert six["licenses"] == [{"license": {"name": "MIT", "acknowledgement": "declared"}}]
    assert found["components"][-1]["type"] == "operating-system"


def test_every_component_has_a_name_of_its_own(tmp_path: Path) -> None:
    layout = image([*LAYER, wheel("x", "1", "one"), wheel("x", "1", "two")])
    found = fetch(parse_reference(f"oci:{layout.write_layout(tmp_path / 'l')}"), tmp_path / "f")
    packages = catalogue(found)
    same = tuple(replace(package, source="other") for package in packages.packages)
    twice = replace(packages, packages=(*packages.packages, *same))
    components = cyclonedx(twice, found, created=0)["components"]
    refs = [component["bom-ref"] for component in components]
    assert len(refs) == len(set(refs)) == 2 * 7 + 1


def test_the_image_is_named_by_its_digest(tmp_path: Path) -> None:
    found = document(tmp_path, *LAYER)
    component = found["metadata"]["component"]
    digest = Digest.parse(component["version"])
    assert component["hashes"] == [{"alg": "SHA-256", "content": digest.hex}]
    assert component["name"].startswith("oci:")
    assert "purl" not in component
    assert found["compositions"][0]["assemblies"] == [component["bom-ref"]]


def test_it_is_open_about_what_it_does_not_know(tmp_path: Path) -> None:
    whole = document(tmp_path / "whole", *LAYER)
    assert whole["metadata"]["component"]["properties"] == []
    assert whole["compositions"][0]["aggregate"] == "unknown"
    gaps = document(tmp_path / "gaps", *LAYER, *GAPS)
    assert properties(gaps["metadata"]["component"]) == {
        "vmrun:unreadable": "Java archives: 1 file, such as /app/a.jar",
        "vmrun:unseen": "1 program or library of no package of the distribution, "
        "such as /app/server",
    }
    assert gaps["compositions"][0]["aggregate"] == "incomplete"


def test_the_same_image_and_time_give_the_same_document(tmp_path: Path) -> None:
    first, again = (document(tmp_path / name, *LAYER) for name in ("1", "2"))
    for found in (first, again):
        del found["metadata"]["component"]["name"]
    assert first == again
    other = document(tmp_path / "3", *LAYER, created=1_700_000_001.0)
    assert other["serialNumber"] != first["serialNumber"]


# --- package URLs ------------------------------------------------------------------------------

DEBIAN, NONE = Distribution("debian", "12"), None


@pytest.mark.parametrize(
    ("kind", "name", "version", "distribution", "qualifiers", "text"),
    [
        ("deb", "a", "1:2.0~rc1-1+b2", DEBIAN, {"arch": "amd64", "distro": "debian-12"},
         "pkg:deb/debian/a@1:2.0~rc1-1%2Bb2?arch=amd64&distro=debian-12"),
        ("deb", "libstdc++6", "12", DEBIAN, {"arch": ""}, "pkg:deb/debian/libstdc%2B%2B6@12"),
        ("deb", "a", "1", NONE, {}, "pkg:deb/a@1"),
        ("apk", "a", "1-r0", Distribution("alpine", "3.20"), {}, "pkg:apk/alpine/a@1-r0"),
        ("pypi", "a-b", "1.0+local", NONE, {}, "pkg:pypi/a-b@1.0%2Blocal"),
        ("npm", "@scope/a", "1", NONE, {}, "pkg:npm/%40scope/a@1"),
        ("npm", "a/../b?x#y", "1@2", NONE, {}, "pkg:npm/a%2F..%2Fb%3Fx%23y@1%402"),
    ],
)  # fmt: skip
def test_package_urls(
    kind: str,
    name: str,
    version: str,
    distribution: Distribution | None,
    qualifiers: dict[str, str],
    text: str,
) -> None:
    found = purl(PackageKind(kind), name, version, distribution=distribution, qualifiers=qualifiers)
    assert found == text
    peer = pytest.importorskip("packageurl").PackageURL.from_string(found)
    assert (peer.type, peer.version) == (kind, version)
    assert peer.qualifiers == {key: value for key, value in qualifiers.items() if value}


def test_package_urls_of_images() -> None:
    digest = Digest.of(b"")
    reference = parse_reference("registry.example.com:5000/team/app:1.2")
    assert oci_purl(reference, digest) == (
        f"pkg:oci/app@{digest}?repository_url=registry.example.com:5000/team/app&tag=1.2"
    )
    assert oci_purl(parse_reference("oci:dir:tag"), digest) == ""


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def sbom(tmp_path: Path) -> Callable[..., Result]:
    reference = f"oci:{image([*LAYER, *GAPS]).write_layout(tmp_path / 'layout')}"

    def call(*words: object, **environment: str) -> Result:
        command = ["image", "sbom", *map(str, words), reference]
        result = CliRunner().invoke(make_app(), command, env=environment)
        if isinstance(result.exception, VmrunError):
            raise result.exception
        return result

    return call


def test_the_command(sbom: Callable[..., Result], tmp_path: Path) -> None:
    result = sbom(SOURCE_DATE_EPOCH="1700000000")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["specVersion"] == "1.6"
    assert found["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert "vmrun: not read: Java archives: 1 file, such as /app/a.jar" in result.stderr
    assert "vmrun: not looked at: 1 program or library" in result.stderr
    for more in (["--json"], ["--json", "--format", "table"], ["--format", "cyclonedx"]):
        assert sbom(*more, SOURCE_DATE_EPOCH="1700000000").stdout == result.stdout
    assert sbom("--output", tmp_path / "o", SOURCE_DATE_EPOCH="1700000000").stdout == ""
    assert (tmp_path / "o").read_text() == result.stdout


def test_a_table(sbom: Callable[..., Result], tmp_path: Path) -> None:
    lines = sbom("--format", "table").stdout.splitlines()
    assert re.split(" {2,}", lines[0]) == [
        "KIND", "NAME", "VERSION", "SOURCE", "ARCHITECTURE", "RECORDED IN",
    ]  # fmt: skip
    assert lines[2].split() == [
        "deb", "libc6", "2.36-9+deb12u4", "glibc", "amd64", "/var/lib/dpkg/status",
    ]  # fmt: skip
    assert len(lines) == 6
    assert sbom("--format", "table", "--output", tmp_path / "o").stdout == ""
    assert (tmp_path / "o").read_text().splitlines() == lines


def test_bad_use_of_the_command(sbom: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot write"):
        sbom("--output", tmp_path)
    for epoch in ("x", "-1", "1.5", "9" * 12, "١"):
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
            sbom(SOURCE_DATE_EPOCH=epoch)
    assert sbom("--format", "xml").exit_code == 2


def test_packages_are_listed_in_order(tmp_path: Path) -> None:
    found = listed(tmp_path, LAYER)
    assert [p.kind.value for p in found.packages] == ["apk", "deb", "deb", "npm", "pypi"]
