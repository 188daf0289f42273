"""The scan gate: what passes, what fails, what was not looked at, and what is too old to say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.advisories import IMAGE, NOW, finding, package, scan
from vmrun.model.digest import Digest
from vmrun.model.scan import Database, PackageKind, Severity, Verdict
from vmrun.policy.scan_gate import VexStatement, judge
from vmrun.policy.trust_rules import ScanException, ScanGate

GATE = ScanGate(max_severity=Severity.MEDIUM)
HIGH = finding(Severity.HIGH)


def verdict(of: object, gate: ScanGate = GATE, *vex: VexStatement) -> Verdict:
    return judge(of, gate, vex, now=NOW).verdict  # type: ignore[arg-type]


def database(dated: float | None) -> tuple[Database, ...]:
    return (Database("OSV PyPI", Digest.of(b"db"), dated, 1),)


@pytest.mark.parametrize(
    ("severity", "limit", "expected"),
    [
        (Severity.NONE, Severity.NONE, Verdict.PASS),
        (Severity.LOW, Severity.NONE, Verdict.FAIL),
        (Severity.MEDIUM, Severity.MEDIUM, Verdict.PASS),
        (Severity.HIGH, Severity.MEDIUM, Verdict.FAIL),
        (Severity.CRITICAL, Severity.CRITICAL, Verdict.PASS),
        # nobody knows how bad it is: worse than anything that may pass
        (Severity.UNKNOWN, Severity.CRITICAL, Verdict.FAIL),
    ],
)
def test_severity(severity: Severity, limit: Severity, expected: Verdict) -> None:
    assert verdict(scan(finding(severity)), ScanGate(max_severity=limit)) is expected


def test_nothing_found_passes() -> None:
    bill = judge(scan(), GATE, now=NOW)
    assert (bill.verdict, bill.reasons, bill.failing) == (Verdict.PASS, (), ())


def test_only_fixed_findings_count_if_asked_so() -> None:
    gate = replace(GATE, fixed_only=True)
    assert verdict(scan(finding(fixed="")), gate) is Verdict.PASS
    assert verdict(scan(finding(fixed="2.0")), gate) is Verdict.FAIL


def test_an_unsure_finding_fails_like_a_sure_one() -> None:
    assert verdict(scan(finding(certain=False))) is Verdict.FAIL


@pytest.mark.parametrize("findings", [(), (HIGH,)])
def test_what_was_not_looked_at_is_never_clean(findings: tuple[object, ...]) -> None:
    bill = judge(
        scan(*findings, uncovered=("no advisories for npm (3 packages)",)),  # type: ignore[arg-type]
        GATE,
        now=NOW,
    )
    assert bill.verdict is Verdict.NOT_SCANNED
    assert "npm" in bill.reasons[0]
    assert len(bill.failing) == len(findings)


def test_compared_with_nothing_is_not_scanned() -> None:
    bill = judge(scan(databases=()), GATE, now=NOW)
    assert bill.verdict is Verdict.NOT_SCANNED
    assert bill.reasons


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scanned_at": NOW - GATE.max_scan_age}, Verdict.PASS),
        ({"scanned_at": NOW - GATE.max_scan_age - 1}, Verdict.STALE),
        ({"scanned_at": NOW + 60}, Verdict.PASS),  # clocks differ
        ({"scanned_at": NOW + 7200}, Verdict.STALE),
        ({"scanned_at": float("inf")}, Verdict.STALE),
        ({"databases": database(NOW - GATE.max_db_age)}, Verdict.PASS),
        ({"databases": database(NOW - GATE.max_db_age - 1)}, Verdict.STALE),
        ({"databases": database(None)}, Verdict.STALE),
        ({"databases": database(NOW + 1e9)}, Verdict.STALE),
        ({"databases": database(-1e300)}, Verdict.STALE),
        ({"databases": (*database(NOW), *database(0.0))}, Verdict.STALE),
    ],
)
def test_age(fields: dict[str, object], expected: Verdict) -> None:
    bill = judge(scan(**fields), GATE, now=NOW)
    assert bill.verdict is expected
    assert bool(bill.reasons) is (expected is Verdict.STALE)


def test_failing_outweighs_stale() -> None:
    assert verdict(scan(HIGH, scanned_at=0.0)) is Verdict.FAIL


def test_reasons_cannot_steer_a_terminal() -> None:
    bill = judge(scan(finding(id="X\x1b[2J"), uncovered=("a\nb",)), GATE, now=NOW)
    assert len(bill.reasons) == 2
    assert all(reason.isprintable() for reason in bill.reasons)


# --- exceptions -------------------------------------------------------------------------------


def excepting(**fields: object) -> ScanGate:
    values = {"id": "TEST-1", "reason": "not reachable", "expires": NOW + 1, "package": ""}
    return replace(GATE, exceptions=(ScanException(**{**values, **fields}),))  # type: ignore[arg-type]


def test_an_exception_excuses_and_is_told() -> None:
    bill = judge(scan(HIGH), excepting(), now=NOW)
    assert bill.verdict is Verdict.PASS
    (excused,) = bill.excused
    assert (excused.reason, excused.origin) == ("not reachable", "rules")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id": "CVE-2026-1"}, Verdict.PASS),  # an alias
        ({"id": "CVE-2026-11"}, Verdict.FAIL),
        ({"package": "parrot"}, Verdict.PASS),
        ({"package": "slug"}, Verdict.FAIL),
        ({"expires": NOW}, Verdict.FAIL),
    ],
)
def test_an_exception_is_about_one_thing(fields: dict[str, object], expected: Verdict) -> None:
    assert judge(scan(HIGH), excepting(**fields), now=NOW).verdict is expected


def test_an_expired_exception_is_named() -> None:
    bill = judge(scan(HIGH), excepting(expires=NOW - 1), now=NOW)
    assert bill.verdict is Verdict.FAIL
    assert any("expired" in reason and "TEST-1" in reason for reason in bill.reasons)


def test_the_source_package_names_its_binaries() -> None:
    ssl = finding(package=package("libssl3", "3", PackageKind.DEB, source="openssl"))
    assert judge(scan(ssl), excepting(package="openssl"), now=NOW).verdict is Verdict.PASS


def test_an_exception_does_not_excuse_what_was_not_looked_at() -> None:
    bill = judge(scan(HIGH, uncovered=("npm",)), excepting(), now=NOW)
    assert bill.verdict is Verdict.NOT_SCANNED


# --- OpenVEX ----------------------------------------------------------------------------------

OTHER = Digest.of(b"another image")


def says(*product: str, component: tuple[str, ...] = (), name: str = "TEST-1") -> VexStatement:
    return VexStatement((name,), product, "not_affected: vulnerable_code_not_present", component)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (says("pkg:pypi/parrot@1.0"), Verdict.PASS),
        (says("pkg:pypi/parrot"), Verdict.PASS),
        (says("pkg:pypi/parrot@1.1"), Verdict.FAIL),
        (says("pkg:pypi/parrots"), Verdict.FAIL),
        (says(str(IMAGE)), Verdict.PASS),
        (says(f"pkg:oci/app@{IMAGE}"), Verdict.PASS),
        (says(f"pkg:oci/app@sha256%3A{IMAGE.hex}?repository_url=r.example.com/app"), Verdict.PASS),
        (says(f"pkg:oci/app@{OTHER}"), Verdict.FAIL),
        (says(f"pkg:oci/app@{OTHER}?was={IMAGE}"), Verdict.FAIL),
        # of a part of an image: both must be meant
        (says(f"pkg:oci/app@{IMAGE}", component=("pkg:pypi/parrot",)), Verdict.PASS),
        (says(f"pkg:oci/app@{IMAGE}", component=("pkg:pypi/slug",)), Verdict.FAIL),
        (says(f"pkg:oci/app@{OTHER}", component=("pkg:pypi/parrot",)), Verdict.FAIL),
        (says("pkg:pypi/parrot@1.0", name="CVE-2026-1"), Verdict.PASS),
        (says("pkg:pypi/parrot@1.0", name="CVE-2026-2"), Verdict.FAIL),
    ],
)
def test_vex_is_about_this_package_in_this_image(
    statement: VexStatement, expected: Verdict
) -> None:
    assert verdict(scan(HIGH), GATE, statement) is expected
