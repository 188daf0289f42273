"""Other scanners. Stand-ins print what grype and trivy are documented to print: neither is here."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.advisories import NOW
from tests.images import fetched, plain_image
from vmrun.model.errors import ScanError
from vmrun.model.image import Image
from vmrun.model.scan import PackageKind, Scan, Severity, Verdict
from vmrun.policy.scan_gate import judge
from vmrun.policy.trust_rules import ScanGate
from vmrun.scan import external
from vmrun.scan.external import external_scan

GRYPE: dict[str, Any] = {
    "matches": [
        {
            "vulnerability": {
                "id": "GHSA-1",
                "severity": "High",
                "description": "parrot is dead",
                "fix": {"versions": ["2.0"], "state": "fixed"},
                "advisories": [],
            },
            "relatedVulnerabilities": [{"id": "CVE-1"}],
            "matchDetails": [],
            "artifact": {
                "name": "parrot",
                "version": "1.0",
                "type": "python",
                "purl": "pkg:pypi/parrot@1.0",
            },
        },
        {
            "vulnerability": {
                "id": "CVE-2",
                "severity": "Unknown",
                "fix": {"versions": [], "state": "not-fixed"},
            },
            "relatedVulnerabilities": [],
            "artifact": {"name": "bash", "version": "5", "type": "deb", "purl": ""},
        },
    ],
    "distro": {"name": "debian", "version": "12", "idLike": []},
    "descriptor": {
        "name": "grype",
        "version": "0.90.0",
        "db": {"status": {"schemaVersion": "v6.0.2", "built": "2026-09-21T04:00:00Z"}},
    },
}
TRIVY: dict[str, Any] = {
    "SchemaVersion": 2,
    "Metadata": {"OS": {"Family": "alpine", "Name": "3.20.3"}},
    "Results": [
        {
            "Target": "x (alpine 3.20.3)",
            "Class": "os-pkgs",
            "Type": "alpine",
            "Packages": [{"Name": "musl"}, {"Name": "zlib"}],
            "Vulnerabilities": [
                {
                    "VulnerabilityID": "CVE-1",
                    "PkgName": "musl",
                    "PkgIdentifier": {"PURL": "pkg:apk/alpine/musl@1.2.5-r0"},
                    "InstalledVersion": "1.2.5-r0",
                    "FixedVersion": "1.2.5-r1, 1.2.6-r0",
                    "Severity": "CRITICAL",
                    "Title": "musl: x",
                }
            ],
        },
        {"Target": "Python", "Class": "lang-pkgs", "Type": "python-pkg"},
    ],
}
TRIVY_VERSION = {
    "Version": "0.55.0",
    "VulnerabilityDB": {"Version": 2, "UpdatedAt": "2026-09-21T06:17:35.123456789Z"},
}


@pytest.fixture
def image(tmp_path: Path) -> Image:
    layout = plain_image().write_layout(tmp_path / "layout")
    return fetched(f"oci:{layout}", tmp_path)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def install(folder: Path, name: str, answer: object, version: object = None) -> None:
    (folder / f"{name}.json").write_text(json.dumps(answer))
    (folder / f"{name}-version.json").write_text(json.dumps(version))
    script(
        folder,
        name,
        f'echo "$PWD $*" >>{folder}/calls; ls -A >>{folder}/seen\n'
        f'case "$1" in version) cat {folder}/{name}-version.json;;'
        f" *) cat {folder}/{name}.json;; esac",
    )


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_grype(image: Image, programs: Path) -> None:
    install(programs, "grype", GRYPE)
    scan = external_scan("grype", image, now=NOW)
    unrated, high = scan.findings
    assert (high.id, high.aliases, high.fixed) == ("GHSA-1", ("CVE-1",), "2.0")
    assert (high.package.kind, high.package.purl) == (PackageKind.PYPI, "pkg:pypi/parrot@1.0")
    assert (unrated.severity, unrated.fixed) == (Severity.UNKNOWN, "")
    (database,) = scan.databases
    assert database.dated == 1_789_963_200.0
    assert scan.scanner == "grype 0.90.0"
    assert scan.digest == image.digest
    assert verdict(scan) is Verdict.FAIL
    call = (programs / "calls").read_text()
    assert f"oci-dir:{image.layout}" in call
    assert "-o json" in call


def verdict(scan: Scan) -> Verdict:
    return judge(scan, ScanGate(), now=NOW).verdict


def test_trivy(image: Image, programs: Path) -> None:
    install(programs, "trivy", TRIVY, TRIVY_VERSION)
    scan = external_scan("trivy", image, now=NOW)
    (critical,) = scan.findings
    assert (critical.id, critical.fixed) == ("CVE-1", "1.2.5-r1")
    assert critical.severity is Severity.CRITICAL
    assert critical.package.kind is PackageKind.APK
    assert (scan.packages, scan.scanner) == (2, "trivy 0.55.0")
    assert scan.databases[0].dated == pytest.approx(1_789_971_455, abs=2)
    assert f"--input {image.layout}" in (programs / "calls").read_text()


def test_trivy_that_understands_nothing_has_not_scanned(image: Image, programs: Path) -> None:
    install(programs, "trivy", {"SchemaVersion": 2}, TRIVY_VERSION)
    assert verdict(external_scan("trivy", image, now=NOW)) is Verdict.NOT_SCANNED


def test_a_clean_answer_passes_and_an_undated_one_is_stale(image: Image, programs: Path) -> None:
    install(programs, "grype", {**GRYPE, "matches": []})
    assert verdict(external_scan("grype", image, now=NOW)) is Verdict.PASS
    install(programs, "grype", {**GRYPE, "matches": [], "descriptor": {"version": "0.90.0"}})
    assert verdict(external_scan("grype", image, now=NOW)) is Verdict.STALE


def test_no_file_of_the_current_folder_steers_them(
    image: Image, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "checkout"
    here.mkdir()
    for name in (".trivyignore", "trivy.yaml", ".grype.yaml"):
        (here / name).write_text("CVE-1\n")
    monkeypatch.chdir(here)
    install(programs, "trivy", TRIVY, TRIVY_VERSION)
    install(programs, "grype", GRYPE)
    for name in ("trivy", "grype"):
        external_scan(name, image, now=NOW)
    assert (programs / "seen").read_text() == ""


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {**GRYPE, "matches": None},
        {**GRYPE, "matches": {}},
        {**GRYPE, "matches": [{}]},
        {**GRYPE, "matches": [{"vulnerability": {"id": 1}, "artifact": {}}]},
    ],
)
def test_an_answer_of_another_form_is_an_error(
    image: Image, programs: Path, answer: object
) -> None:
    install(programs, "grype", answer)
    with pytest.raises(ScanError, match="grype"):
        external_scan("grype", image, now=NOW)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 3", "status 3"),
        ("echo '['", "malformed JSON"),
        ("cat {answer}; exit 1", "status 1"),
        ("exec sleep 30", "timed out"),
        ("head -c 3000 /dev/zero", "printed more than"),
    ],
)
def test_a_program_that_fails_is_no_clean_scan(
    image: Image, programs: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    install(programs, "grype", {**GRYPE, "matches": []})
    script(programs, "grype", text.format(answer=programs / "grype.json"))
    monkeypatch.setattr(external, "_TIMEOUT", 0.5)
    monkeypatch.setattr(external, "_LIMITS", external.ImageLimits(document=2000))
    with pytest.raises(ScanError, match=said):
        external_scan("grype", image, now=NOW)


def test_a_program_that_is_not_there(image: Image, programs: Path) -> None:
    with pytest.raises(ScanError, match="not installed"):
        external_scan("trivy", image, now=NOW)


def test_what_a_program_says_cannot_steer_the_terminal(image: Image, programs: Path) -> None:
    script(programs, "grype", r"printf '\033[2Jgone' >&2; exit 1")
    with pytest.raises(ScanError) as caught:
        external_scan("grype", image, now=NOW)
    assert "\x1b" not in caught.value.details
