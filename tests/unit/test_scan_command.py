"""``vmrun image scan`` as users and pipelines meet it: what it prints and how it ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.advisories import (
    CRITICAL,
    advisory,
    alpine_with_wheels,
    write_alpine_database,
    write_database,
)
from tests.conftest import Result
from vmrun.cli.main import main

Vmrun = Callable[..., Result]


@pytest.fixture
def app(tmp_path: Path) -> str:
    """An image with a Python package in it."""
    layout = alpine_with_wheels(("parrot", "1.0")).write_layout(tmp_path / "app")
    return f"oci:{layout}"


@pytest.fixture
def advisories(tmp_path: Path) -> Path:
    """A folder with databases of today that say nothing of what is in the image."""
    publish(tmp_path / "advisories", advisory(name="slug"))
    return tmp_path / "advisories"


def publish(folder: Path, *advisories: dict[str, Any], age: float = 3600.0) -> None:
    when = datetime.fromtimestamp(time.time() - age, UTC).isoformat()
    write_alpine_database(folder, when)
    write_database(folder, "PyPI", *({**item, "modified": when} for item in advisories))


@pytest.fixture
def vmrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vmrun:
    """The whole program in this process, which is ten times as fast as in one of its own."""

    def call(*arguments: str, env: dict[str, str] | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["vmrun", *arguments])
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Result(int(end.value.code or 0), said.out, said.err, {})

    return call


def scan(vmrun: Vmrun, app: str, advisories: Path, *options: str, **more: Any) -> Result:
    return vmrun("image", "scan", "--advisories", str(advisories), *options, app, **more)


def test_pass(vmrun: Vmrun, app: str, advisories: Path) -> None:
    result = scan(vmrun, app, advisories)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1].startswith("PASS  sha256:")


def test_fail_names_what_to_install(vmrun: Vmrun, app: str, advisories: Path) -> None:
    publish(
        advisories,
        advisory("LOW-1", database_specific={"severity": "LOW"}, events=[{"introduced": "0"}]),
        advisory("BAD-1", aliases=["CVE-2026-1"], severity=[{"type": "X", "score": CRITICAL}]),
    )
    result = scan(vmrun, app, advisories)
    assert result.status == 1
    header, worst, mild, *_ = result.out.splitlines()
    assert header.split()[:2] == ["GATE", "SEVERITY"]
    assert worst.split()[:7] == ["fails", "critical", "9.8", "parrot", "1.0", "2.0", "BAD-1"]
    assert mild.split()[:5] == ["passes", "low", "parrot", "1.0", "-"]
    assert result.out.splitlines()[-1].startswith("FAIL")
    assert scan(vmrun, app, advisories, "--max-severity", "critical").status == 0


def test_not_scanned(vmrun: Vmrun, app: str, tmp_path: Path) -> None:
    result = scan(vmrun, app, tmp_path / "nothing")
    assert result.status == 1
    assert "no advisories for PyPI (1 packages)" in result.out
    assert "no advisories for Alpine:v3.20 (1 packages)" in result.out
    assert result.out.splitlines()[-1].startswith("NOT-SCANNED")


def test_stale(vmrun: Vmrun, app: str, advisories: Path) -> None:
    publish(advisories, advisory(name="slug"), age=8 * 86400)
    result = scan(vmrun, app, advisories)
    assert result.status == 1
    assert result.out.splitlines()[-1].startswith("STALE")
    assert scan(vmrun, app, advisories, "--max-db-age", "9d").status == 0


def test_fixed_only(vmrun: Vmrun, app: str, advisories: Path) -> None:
    publish(advisories, advisory(events=[{"introduced": "0"}]))
    assert scan(vmrun, app, advisories).status == 1
    assert scan(vmrun, app, advisories, "--fixed-only").status == 0


def test_openvex(vmrun: Vmrun, app: str, advisories: Path, tmp_path: Path) -> None:
    publish(advisories, advisory())
    statement = {
        "vulnerability": {"name": "TEST-1"},
        "products": [{"@id": "pkg:pypi/parrot@1.0"}],
        "status": "not_affected",
        "justification": "vulnerable_code_not_present",
    }
    vex = tmp_path / "vex.json"
    vex.write_text(
        json.dumps(
            {
                "@context": "https://openvex.dev/ns/v0.2.0",
                "@id": "https://example.com/1",
                "author": "us",
                "timestamp": "2026-01-01T00:00:00Z",
                "version": 1,
                "statements": [statement],
            }
        )
    )
    result = scan(vmrun, app, advisories, "--openvex", str(vex))
    assert result.status == 0, result.out
    assert result.out.splitlines()[1].startswith("excused")
    vex.write_text("{}")
    broken = scan(vmrun, app, advisories, "--openvex", str(vex))
    assert broken.status == 1
    assert "PASS" not in broken.out


def test_a_bad_database_gives_no_verdict(vmrun: Vmrun, app: str, advisories: Path) -> None:
    (advisories / "PyPI" / "all.zip").write_bytes(b"<html>")
    result = scan(vmrun, app, advisories)
    assert result.status == 1
    assert result.out == ""
    assert "not a zip" in result.err
    assert "Traceback" not in result.err


def test_json(vmrun: Vmrun, app: str, advisories: Path) -> None:
    publish(advisories, advisory())
    result = scan(vmrun, app, advisories, "--json")
    bill = json.loads(result.out)
    assert bill["verdict"] == "FAIL"
    assert bill["failing"][0]["id"] == "TEST-1"
    assert bill["scan"]["databases"][0]["digest"].startswith("sha256:")


def test_sarif_into_a_file(vmrun: Vmrun, app: str, advisories: Path, tmp_path: Path) -> None:
    publish(advisories, advisory())
    output = tmp_path / "report.sarif"
    result = scan(vmrun, app, advisories, "--format", "sarif", "--output", str(output))
    assert (result.status, result.out) == (1, "")
    log = json.loads(output.read_text())
    assert log["runs"][0]["results"][0]["ruleId"] == "TEST-1"
    unwritable = scan(vmrun, app, advisories, "--output", str(tmp_path / "no" / "where"))
    assert unwritable.status == 1
    assert "cannot write" in unwritable.err


def test_the_trust_rules_set_the_gate(
    vmrun: Vmrun, app: str, advisories: Path, tmp_path: Path
) -> None:
    publish(advisories, advisory(database_specific={"severity": "LOW"}))
    assert scan(vmrun, app, advisories).status == 0
    rules = tmp_path / "trust.toml"
    rules.write_text('version = 1\n[scan]\nmax_severity = "none"\n')
    rules.chmod(0o644)
    assert scan(vmrun, app, advisories, "--trust-rules", str(rules)).status == 1
    rules.write_text(
        'version = 1\n[scan]\nmax_severity = "none"\n[[scan.exceptions]]\nid = "TEST-1"\n'
        'reason = "not reachable"\nexpires = 2099-01-01T00:00:00Z\n'
    )
    result = scan(vmrun, app, advisories, "--trust-rules", str(rules))
    assert result.status == 0, result.err + result.out
    assert result.out.splitlines()[1].startswith("excused")


def test_what_advisories_say_cannot_steer_the_terminal(
    vmrun: Vmrun, app: str, advisories: Path
) -> None:
    publish(advisories, advisory("TEST-\x1b[2J", aliases=["\x1b]0;x\x07"]))
    result = scan(vmrun, app, advisories)
    assert result.status == 1
    assert "\x1b" not in result.out + result.err
    assert "\x07" not in result.out + result.err


@pytest.mark.parametrize(
    "options",
    [
        ("--max-severity", "awful"),
        ("--max-severity", "unknown"),
        ("--max-db-age", "soon"),
        ("--scanner", "guess"),
        ("--format", "xml"),
    ],
)
def test_usage(vmrun: Vmrun, app: str, advisories: Path, options: tuple[str, ...]) -> None:
    assert scan(vmrun, app, advisories, *options).status == 2


def test_a_scanner_that_is_not_installed(vmrun: Vmrun, app: str, advisories: Path) -> None:
    result = scan(vmrun, app, advisories, "--scanner", "trivy", env={"PATH": "/nowhere"})
    assert result.status == 1
    assert "trivy is not installed" in result.err
