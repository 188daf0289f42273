"""What is compared with which database, what nobody answers for, and when a scan is used again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.advisories import (
    BOOKWORM,
    CRITICAL,
    IMAGE,
    NOW,
    advisory,
    alpine_with_wheels,
    catalogue,
    finding,
    package,
    real_advisories,
    write_alpine_database,
    write_database,
)
from tests.images import fetched
from vmrun.model.digest import Digest
from vmrun.model.errors import ScanError
from vmrun.model.scan import Catalogue, Database, Distribution, PackageKind, Scan, Severity
from vmrun.scan import debian_security
from vmrun.scan.debian_security import SecuritySuite
from vmrun.scan.match import merged
from vmrun.scan.scan import Sources, match_catalogue, scan_image

DEB, APK, NPM = PackageKind.DEB, PackageKind.APK, PackageKind.NPM


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "advisories", tmp_path / "cache", debian_suite=False)


def matched(of: Catalogue, sources: Sources) -> Scan:
    return match_catalogue(of, sources, now=NOW)


def found(scan: Scan) -> list[tuple[str, str]]:
    return [(finding.id, finding.package.name) for finding in scan.findings]


def test_debian_is_asked_by_source_package_and_its_version(sources: Sources) -> None:
    write_database(
        sources.advisories,
        "Debian:12",
        advisory(
            ecosystem="Debian:12",
            name="openssl",
            events=[{"introduced": "0"}, {"fixed": "3.0.15-1~deb12u1"}],
        ),
        advisory("WRONG", ecosystem="Debian:12", name="libssl3"),
        advisory("OTHER-RELEASE", ecosystem="Debian:11", name="openssl", events=[I0]),
    )
    old = package("libssl3", "3.0.14-1", DEB, source="openssl", source_version="3.0.14-1")
    new = package("libssl-dev", "1", DEB, source="openssl", source_version="3.0.15-1")
    scan = matched(catalogue(old, new, distribution=BOOKWORM), sources)
    assert found(scan) == [("TEST-1", "libssl3")]
    assert scan.findings[0].fixed == "3.0.15-1~deb12u1"
    assert scan.uncovered == ()


I0 = {"introduced": "0"}


def test_alpine_npm_and_python(sources: Sources) -> None:
    write_database(
        sources.advisories,
        "Alpine:v3.20",
        advisory("A", ecosystem="Alpine:v3.20", name="musl", events=[I0, {"fixed": "1.2.5-r1"}]),
    )
    write_database(
        sources.advisories, "npm", advisory("N", ecosystem="npm", name="@scope/x", events=[I0])
    )
    write_database(sources.advisories, "PyPI", advisory("P", name="ruamel-yaml", events=[I0]))
    scan = matched(
        catalogue(
            package("libc-utils", "1.2.5-r0", APK, source="musl"),
            package("@scope/x", "1.0.0", NPM),
            package("ruamel-yaml", "0.1"),
            distribution=Distribution("alpine", "3.20.3"),
        ),
        sources,
    )
    assert sorted(found(scan)) == [("A", "libc-utils"), ("N", "@scope/x"), ("P", "ruamel-yaml")]
    assert sorted(scan.ecosystems) == ["Alpine:v3.20", "PyPI", "npm"]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (catalogue(package()), "PyPI"),
        (catalogue(package(kind=NPM)), "npm"),
        (catalogue(package(kind=DEB), distribution=BOOKWORM), "Debian:12"),
        (catalogue(package(kind=APK), distribution=Distribution("alpine", "3.20.1")), "v3.20"),
        (catalogue(package(kind=DEB), distribution=Distribution("devuan", "5")), "devuan 5"),
        (catalogue(package(kind=DEB)), "no distribution"),
        (catalogue(unreadable=["an rpm database"]), "rpm"),
    ],
)
def test_what_nobody_answers_for_is_named(sources: Sources, of: Catalogue, said: str) -> None:
    scan = matched(of, sources)
    assert len(scan.uncovered) == 1
    assert said in scan.uncovered[0]


def test_what_the_distribution_manages_is_the_distributions(sources: Sources) -> None:
    write_database(sources.advisories, "PyPI", advisory(events=[I0]))
    write_database(sources.advisories, "Debian:12", advisory("D", ecosystem="Debian:12", name="x"))
    scan = matched(
        catalogue(
            package(managed=True),
            package("python3-parrot", "1", DEB, source="parrot"),
            distribution=BOOKWORM,
        ),
        sources,
    )
    assert found(scan) == []
    assert scan.ecosystems == ("Debian:12",)


def test_a_bad_database_is_an_error_not_an_empty_one(sources: Sources) -> None:
    write_database(sources.advisories, "PyPI", b"{}")
    with pytest.raises(ScanError):
        matched(catalogue(package()), sources)


def test_a_version_that_cannot_be_compared_is_a_finding(sources: Sources) -> None:
    write_database(sources.advisories, "PyPI", advisory())
    (only,) = matched(catalogue(package(version="built-by-bob")), sources).findings
    assert not only.certain


# --- one problem, one finding ----------------------------------------------------------------


def test_aliases_are_one_finding_with_the_worst_severity() -> None:
    low = finding(Severity.LOW, id="PYSEC-1", aliases=("CVE-1",), fixed="")
    high = finding(Severity.HIGH, id="GHSA-1", aliases=("CVE-1",), fixed="2.0", certain=False)
    unrated = finding(Severity.UNKNOWN, id="X-1", aliases=("GHSA-1",), fixed="")
    (one,) = merged([low, high, unrated])
    assert (one.id, one.severity, one.fixed) == ("GHSA-1", Severity.HIGH, "2.0")
    assert set(one.aliases) == {"PYSEC-1", "X-1", "CVE-1"}


def test_a_later_advisory_joins_two_groups() -> None:
    names = [("A", ()), ("B", ()), ("C", ("A", "B"))]
    (one,) = merged([finding(id=name, aliases=aliases) for name, aliases in names])
    assert {one.id, *one.aliases} == {"A", "B", "C"}


def test_one_problem_of_two_packages_is_two_findings() -> None:
    assert len(merged([finding(), finding(package=package("slug"))])) == 2


def test_many_findings_take_no_time() -> None:
    many = [finding(id=f"T-{n}", aliases=(), package=package(f"p{n % 500}")) for n in range(10_000)]
    assert len(merged(many)) == 10_000


# --- the suite of Debian as a second source --------------------------------------------------


def suite(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str] | None, mark: str = "") -> None:
    def give(distribution: Distribution, cache: Path, *, max_age: float) -> SecuritySuite:
        if versions is None:
            raise ScanError("apt cannot get the index")
        digest = Digest.of(f"{sorted(versions.items())}{mark}".encode())
        return SecuritySuite(Database("debian-security bookworm", digest, NOW, 1), versions)

    monkeypatch.setattr(debian_security, "security_suite", give)
    monkeypatch.setattr(debian_security, "covers", lambda distribution: True)


def test_the_suite_alone_covers_debian(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    suite(monkeypatch, {"libssl3": "3.0.15-1"})
    of = catalogue(package("libssl3", "3.0.14-1", DEB, source="openssl"), distribution=BOOKWORM)
    scan = matched(of, replace(sources, debian_suite=True))
    assert scan.uncovered == ()
    (pending,) = scan.findings
    assert (pending.id, pending.fixed) == ("DEBIAN-SECURITY:openssl", "3.0.15-1")
    assert pending.severity is Severity.UNKNOWN
    assert matched(of, sources).uncovered != ()  # without it nobody answers


def test_without_network_a_database_is_enough_but_nothing_is_not(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite(monkeypatch, None)
    both = replace(sources, debian_suite=True)
    of = catalogue(package("bash", "1", DEB), distribution=BOOKWORM)
    with pytest.raises(ScanError):
        matched(of, both)
    write_database(sources.advisories, "Debian:12", advisory(ecosystem="Debian:12", name="bash"))
    assert [database.name for database in matched(of, both).databases] == ["OSV Debian:12"]


# --- real images -----------------------------------------------------------------------------


def wheel_image(tmp_path: Path, *wheels: tuple[str, str]) -> str:
    return f"oci:{alpine_with_wheels(*wheels).write_layout(tmp_path / 'layout')}"


def test_known_vulnerable_wheels_are_found_in_real_databases(tmp_path: Path) -> None:
    reference = wheel_image(tmp_path, ("requests", "2.19.0"), ("Jinja2", "2.10"), ("six", "1.16.0"))
    sources = Sources(real_advisories(), tmp_path / "cache")
    scan = scan_image(fetched(reference, tmp_path), sources, tmp_path / "scans", now=NOW)
    by_package: dict[str, set[str]] = {}
    for item in scan.findings:
        by_package.setdefault(item.package.name, set()).update((item.id, *item.aliases))
    assert {"CVE-2018-18074", "CVE-2023-32681"} <= by_package["requests"]
    assert {"CVE-2019-10906", "CVE-2020-28493"} <= by_package["jinja2"]
    assert "six" not in by_package
    assert all(item.certain and item.fixed for item in scan.findings)


def test_a_scan_is_used_again_until_a_database_changes(tmp_path: Path) -> None:
    sources = Sources(tmp_path / "advisories", tmp_path / "cache")
    taken = fetched(wheel_image(tmp_path, ("parrot", "1.0")), tmp_path)
    scans = tmp_path / "scans"
    write_alpine_database(sources.advisories)

    def again(later: float) -> Scan:
        return scan_image(taken, sources, scans, now=NOW + later)

    write_database(sources.advisories, "PyPI", advisory())
    assert found(again(0)) == [("TEST-1", "parrot")]
    (stored,) = scans.iterdir()
    assert stored.stat().st_mode & 0o077 == 0
    reused = again(100)
    assert reused.scanned_at == NOW + 100
    assert found(reused) == [("TEST-1", "parrot")]
    assert reused.uncovered == ()
    write_database(
        sources.advisories,
        "PyPI",
        advisory(),
        advisory("TEST-2", severity=[{"type": "CVSS_V3", "score": CRITICAL}]),
    )
    assert found(again(200)) == [("TEST-2", "parrot"), ("TEST-1", "parrot")]
    stored.write_bytes(b"{}")  # damaged: scanned anew
    assert len(again(300).findings) == 2


def test_a_database_that_is_new_is_not_overlooked(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A scan that only the suite covered is not good any more once there are advisories."""
    suite(monkeypatch, {})
    of = catalogue(package("bash", "1.0", DEB), distribution=BOOKWORM)
    monkeypatch.setattr("vmrun.scan.scan.read_catalogue", lambda image: of)
    both = replace(sources, debian_suite=True)

    class Taken:
        digest = IMAGE

    def again() -> Scan:
        return scan_image(Taken(), both, tmp_path / "scans", now=NOW)  # type: ignore[arg-type]

    assert found(again()) == []
    write_database(sources.advisories, "Debian:12", advisory(ecosystem="Debian:12", name="bash"))
    assert found(again()) == [("TEST-1", "bash")]
