"""A scan on disk, in an attestation and as SARIF: what is read back is what was found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.advisories import BOOKWORM, IMAGE, NOW, finding, package, scan
from vmrun.image.document import Document
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, StateError, VmrunError
from vmrun.model.scan import BillOfHealth, Database, PackageKind, Scan, Severity
from vmrun.policy.scan_gate import VexStatement, judge
from vmrun.policy.trust_rules import ScanGate
from vmrun.scan.bill import (
    scan_as_json,
    scan_from_json,
    scan_of_predicate,
    vulnerability_predicate,
)
from vmrun.scan.sarif import sarif
from vmrun.scan.scans import load_scan, save_scan

FULL = scan(
    finding(score=7.5),
    finding(
        Severity.UNKNOWN,
        id="TEST-2",
        aliases=(),
        fixed="",
        certain=False,
        package=package("libssl3", "3", PackageKind.DEB, source="openssl", source_version="3.1"),
    ),
    distribution=BOOKWORM,
    databases=(
        Database("OSV PyPI", Digest.of(b"a"), NOW, 3),
        Database("OSV npm", Digest.of(b"b"), None),
    ),
    uncovered=("not read: an rpm database",),
    ecosystems=("PyPI", "Debian:12"),
)


def copy(value: object) -> Any:
    return json.loads(json.dumps(value))


def read(value: Any) -> Scan:
    return scan_from_json(Document(value, "scan"))


def test_a_scan_comes_back_whole(tmp_path: Path) -> None:
    save_scan(tmp_path / "scans", FULL)
    assert load_scan(tmp_path / "scans", IMAGE) == FULL
    (stored,) = (tmp_path / "scans").iterdir()
    assert stored.stat().st_mode & 0o077 == 0
    assert (tmp_path / "scans").stat().st_mode & 0o077 == 0


def test_a_scan_of_another_image_does_not_count(tmp_path: Path) -> None:
    save_scan(tmp_path, replace(FULL, digest=Digest.of(b"other")))
    (stored,) = tmp_path.iterdir()
    stored.rename(tmp_path / f"sha256-{IMAGE.hex}.json")
    assert load_scan(tmp_path, IMAGE) is None


def test_a_store_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans").chmod(0o777)
    with pytest.raises(StateError, match="others can write"):
        save_scan(tmp_path / "scans", FULL)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format": 99}', b"\xff"])
def test_a_stored_scan_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / f"sha256-{IMAGE.hex}.json").write_bytes(data)
    assert load_scan(tmp_path, IMAGE) is None


def test_the_predicate_has_cosigns_form() -> None:
    predicate = copy(vulnerability_predicate(FULL))
    assert set(predicate) == {"invocation", "scanner", "metadata"}
    assert {"uri", "version", "db", "result"} <= set(predicate["scanner"])
    for key in ("scanStartedOn", "scanFinishedOn"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", predicate["metadata"][key])
    assert scan_of_predicate(predicate, "attestation") == FULL


@pytest.mark.parametrize(
    "predicate",
    [
        {},
        {"scanner": {"uri": "trivy", "result": {"SchemaVersion": 2}}},
        {"scanner": {"result": None}},
        {"scanner": []},
    ],
)
def test_other_peoples_predicates_are_errors(predicate: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        scan_of_predicate(predicate, "attestation")


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths(inner, (*path, key))
    return found


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([])


@given(st.data())
def test_nothing_in_a_scan_can_be_anything(data: st.DataObject) -> None:
    value = copy(scan_as_json(FULL))
    *way, last = data.draw(st.sampled_from(paths(value)))
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(_LEAF)
    try:
        changed = read(value)
    except VmrunError:
        return
    judge(changed, ScanGate(), now=NOW)  # whatever it says, it can be judged


# --- SARIF ------------------------------------------------------------------------------------

ODD = finding(
    id="TEST-3",
    aliases=("security", "CVE-3"),
    package=replace(package("odd"), path="/lib/a b/%zz?#é"),
)


def report(*, excused: bool = False, of: Scan | None = None) -> tuple[BillOfHealth, dict[str, Any]]:
    gate = ScanGate(max_severity=Severity.MEDIUM)
    vex = [VexStatement(("TEST-1",), ("pkg:pypi/parrot",), "not_affected: x")] if excused else []
    bill = judge(of or scan(finding(), finding(Severity.LOW, id="TEST-2"), ODD), gate, vex, now=NOW)
    return bill, copy(sarif(bill, "registry.example.com/app:1"))


def test_sarif_has_the_shape_of_the_standard() -> None:
    bill, log = report()
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["TEST-1", "TEST-2", "TEST-3"]
    levels = {result["ruleId"]: result["level"] for result in run["results"]}
    assert levels == {"TEST-1": "error", "TEST-2": "note", "TEST-3": "error"}
    assert run["properties"]["verdict"] == bill.verdict == "FAIL"
    marks = [result["partialFingerprints"]["package/v1"] for result in run["results"]]
    assert len(set(marks)) == 3
    for rule in run["tool"]["driver"]["rules"]:
        assert 0.0 <= float(rule["properties"]["security-severity"]) <= 10.0
        assert len(set(rule["properties"]["tags"])) == len(rule["properties"]["tags"])


def test_sarif_locations_are_uris() -> None:
    _, log = report()
    for result in log["runs"][0]["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"(?:[A-Za-z0-9._~/!$&'()*+,;=:@-]|%[0-9A-F]{2})+", uri), uri


def test_sarif_is_the_same_for_the_same_findings() -> None:
    assert report()[1] == report()[1]


def test_what_is_excused_is_suppressed_with_its_reason() -> None:
    _, log = report(excused=True)
    suppressed = {
        result["ruleId"]: result["suppressions"]
        for result in log["runs"][0]["results"]
        if "suppressions" in result
    }
    assert suppressed == {"TEST-1": [{"kind": "external", "justification": "not_affected: x"}]}


def test_an_image_that_was_not_scanned_is_no_success() -> None:
    _, log = report(of=FULL)
    (invocation,) = log["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert "rpm" in invocation["toolExecutionNotifications"][0]["message"]["text"]
