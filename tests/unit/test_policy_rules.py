"""trust.toml: strict reading, and that several files only ever tighten."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.digest import Digest
from vmrun.model.errors import SettingsError
from vmrun.model.scan import Severity
from vmrun.policy.edit import FIRST_RULES
from vmrun.policy.trust_rules import (
    CatalogueRule,
    Downgrade,
    KeyValidity,
    ScanException,
    ScanGate,
    Threshold,
    TrustRules,
    combine_gates,
    parse_rules,
)

KEY = "sha256:" + "a" * 64
HOUR, DAY = 3600.0, 24 * 3600.0


def parse(text: str) -> TrustRules:
    return parse_rules(f"version = 1\n{text}".encode(), "trust.toml")


def at(year: int, month: int = 1, day: int = 1) -> float:
    return datetime(year, month, day, tzinfo=UTC).timestamp()


def test_everything_that_may_stand_there() -> None:
    rules = parse(f"""
        [[revoked.keys]]
        id = "{KEY}"
        reason = "stolen"
        [[revoked.digests]]
        digest = "{KEY}"
        reason = "holds a secret"
        [[keys]]
        id = "{KEY}"
        name = "release 2026"
        not_before = 2026-01-01T00:00:00Z
        not_after = 2027-01-01T01:00:00+01:00
        [[threshold]]
        scope = "registry.example.com/prod"
        signatures = 2
        [ledger]
        downgrade = "warn"
        [scan]
        required = true
        max_severity = "low"
        fixed_only = true
        max_scan_age = "12h"
        max_db_age = "3d"
        attested_by = ["{KEY}"]
        openvex = ["/etc/vmrun/vex.json"]
        [[scan.exceptions]]
        id = "CVE-2026-0001"
        package = "openssl"
        reason = "not reachable"
        expires = 2026-12-31T00:00:00Z
        [[catalogue]]
        name = "prod"
        source = "https://registry.example.com/catalogue"
        root = "/etc/vmrun/root.json"
        scopes = ["registry.example.com", "*.example.org"]
    """)
    assert rules == TrustRules(
        revoked_keys={KEY: "stolen"},
        revoked_digests={Digest.parse(KEY): "holds a secret"},
        keys=(KeyValidity(KEY, "release 2026", at(2026), at(2027)),),
        thresholds=(Threshold("registry.example.com/prod", 2),),
        downgrade=Downgrade.WARN,
        scan=ScanGate(
            required=True,
            max_severity=Severity.LOW,
            fixed_only=True,
            max_scan_age=12 * HOUR,
            max_db_age=3 * DAY,
            attested_by=(KEY,),
            openvex=("/etc/vmrun/vex.json",),
            exceptions=(
                ScanException("CVE-2026-0001", "not reachable", at(2026, 12, 31), "openssl"),
            ),
        ),
        catalogues=(
            CatalogueRule(
                "prod",
                "https://registry.example.com/catalogue",
                "/etc/vmrun/root.json",
                ("registry.example.com", "*.example.org"),
            ),
        ),
    )


def test_without_rules_a_downgrade_is_refused_and_no_scan_asked_for() -> None:
    assert parse("") == TrustRules(downgrade=Downgrade.REFUSE, scan=None)


def test_an_empty_gate_is_a_strict_one() -> None:
    assert parse("[scan]").scan == ScanGate(
        required=True, max_severity=Severity.MEDIUM, fixed_only=False, attested_by=(), openvex=()
    )


def test_the_first_rules_that_a_user_gets_can_be_read() -> None:
    rules = parse_rules(FIRST_RULES, "trust.toml")
    assert rules.downgrade is Downgrade.REFUSE
    assert rules.scan is not None
    assert rules.scan.required


KEYS = f'[[keys]]\nid = "{KEY}"\n'
EXCEPTION = '[[scan.exceptions]]\nid = "CVE-1"\nreason = "r"\n'
CATALOGUE = '[[catalogue]]\nname = "a"\nsource = "/a"\nroot = "/r"\nscopes = ["a.example.com"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("surprise = 1", "surprise"),
        ("[revoked]\nkey = []", "key"),
        ("[revoked]\nkeys = 1", "list of tables"),
        ('[[revoked.keys]]\nid = "' + KEY + '"', "reason"),
        ('[[revoked.keys]]\nid = "abc"\nreason = "r"', "key id"),
        (f'[[revoked.keys]]\nid = "{KEY.upper()}"\nreason = "r"', "key id"),
        (f'[[revoked.keys]]\nid = "{KEY}"\nreason = ""', "reason"),
        (f'[[revoked.keys]]\nid = "{KEY}"\nreason = "r"\nwhen = 1', "when"),
        ('[[revoked.digests]]\ndigest = "sha256:1"\nreason = "r"', "not a digest"),
        (KEYS + "not_after = 2027-01-01T00:00:00", "zone"),
        (KEYS + "not_after = 2027-01-01", "zone"),
        (KEYS + 'not_after = "2027-01-01T00:00:00Z"', "zone"),
        (KEYS + "not_after = 9999-12-31T23:59:59-01:00", "10000"),
        (KEYS + "not_after = 2027-13-01T00:00:00Z", "trust.toml"),
        (KEYS + "not_before = 2027-01-01T00:00:00Z\nnot_after = 2026-01-01T00:00:00Z", "later"),
        (KEYS + "expires = 2027-01-01T00:00:00Z", "expires"),
        ('[[threshold]]\nscope = "a.example.com"', "signatures"),
        ('[[threshold]]\nscope = "a.example.com"\nsignatures = 0', "1 to 100"),
        ('[[threshold]]\nscope = "a.example.com"\nsignatures = true', "whole number"),
        ('[[threshold]]\nscope = "a.example.com"\nsignatures = 2.0', "whole number"),
        ('[[threshold]]\nscope = ""\nsignatures = 2', "scope"),
        ('[[threshold]]\nscope = "prod"\nsignatures = 2', "names no registry"),
        ('[[threshold]]\nscope = "A.example.com"\nsignatures = 2', "lower case"),
        ('[threshold]\nscope = "a.example.com"\nsignatures = 2', "list of tables"),
        ('[ledger]\ndowngrade = "never"', "refuse, warn, off"),
        ("[ledger]\ndowngrade = false", "downgrade"),
        ("[ledger]\nupgrade = 1", "upgrade"),
        ("[scan]\nrequired = 1", "true or false"),
        ('[scan]\nmax_severity = "moderate"', "max_severity"),
        ('[scan]\nmax_severity = "unknown"', "max_severity"),
        ('[scan]\nfixed_only = "yes"', "true or false"),
        ('[scan]\nmax_scan_age = "soon"', "duration"),
        ('[scan]\nmax_db_age = "0h"', "duration"),
        ("[scan]\nmax_db_age = 7", "max_db_age"),
        ('[scan]\nattested_by = ["alice"]', "key ids"),
        ('[scan]\nopenvex = ["vex.json"]', "absolute"),
        ('[scan]\nopenvex = "/vex.json"', "list of strings"),
        ('[scan]\nmin_severity = "low"', "min_severity"),
        (EXCEPTION, "expires"),
        (EXCEPTION + "expires = 2026-12-31T00:00:00", "zone"),
        (EXCEPTION.replace('reason = "r"\n', "") + "expires = 2026-12-31T00:00:00Z", "reason"),
        (CATALOGUE.replace('"/a"', '"a"'), "source"),
        (CATALOGUE.replace('"/a"', '"ftp://a.example.com"'), "source"),
        (CATALOGUE.replace('"/r"', '"r"'), "absolute"),
        (CATALOGUE.replace('"a"', '"../a"'), "name"),
        (CATALOGUE.replace('["a.example.com"]', "[]"), "not empty"),
        (CATALOGUE.replace('["a.example.com"]', '["prod"]'), "names no registry"),
        ("[scan]\n[scan]", "trust.toml"),
        ("x = " + "9" * 5000, "trust.toml"),
        ("x = " + "[" * 5000, "trust.toml"),
        ("x = \x00", "trust.toml"),
    ],
)
def test_what_is_not_understood_is_an_error(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert said in caught.value.message
    assert caught.value.message.startswith("trust.toml")


@pytest.mark.parametrize("version", ["", "version = 2", 'version = "1"', "version = true"])
def test_another_version_is_an_error(version: str) -> None:
    with pytest.raises(SettingsError, match="version"):
        parse_rules(version.encode(), "trust.toml")


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(SettingsError):
        parse_rules(b"version = 1\n" + data, "trust.toml")


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("a.example.com/prod/app:1", 3),
        ("a.example.com/test/app:1", 2),
        ("b.example.com/app:1", 1),
        ("a.example.org/app:1", 0),
    ],
)
def test_of_several_thresholds_the_highest_counts(name: str, needed: int) -> None:
    rules = TrustRules(
        thresholds=(
            Threshold("a.example.com/prod", 3),
            Threshold("a.example.com", 2),
            Threshold("*.example.com", 1),
        )
    )
    assert rules.threshold(name) == needed


_GATES = st.builds(
    ScanGate,
    required=st.booleans(),
    max_severity=st.sampled_from([s for s in Severity if s is not Severity.UNKNOWN]),
    fixed_only=st.booleans(),
    max_scan_age=st.floats(1, 1e6),
    max_db_age=st.floats(1, 1e6),
    attested_by=st.lists(st.sampled_from("ab"), unique=True).map(tuple),
    openvex=st.lists(st.sampled_from(["/a", "/b"]), unique=True).map(tuple),
    exceptions=st.lists(
        st.sampled_from([ScanException("CVE-1", "r", 1.0), ScanException("CVE-2", "r", 1.0)]),
        unique=True,
    ).map(tuple),
)


@given(st.lists(_GATES, min_size=1, max_size=3).map(tuple))
def test_of_several_gates_the_strictest_counts(gates: tuple[ScanGate, ...]) -> None:
    both = combine_gates(gates)
    assert both is not None
    for gate in gates:
        assert both.required or not gate.required
        assert both.max_severity <= gate.max_severity
        assert gate.fixed_only or not both.fixed_only
        assert both.max_scan_age <= gate.max_scan_age
        assert both.max_db_age <= gate.max_db_age
        assert set(both.attested_by) <= set(gate.attested_by)
        assert set(both.openvex) <= set(gate.openvex)
        assert set(both.exceptions) <= set(gate.exceptions)


def test_no_gates_are_no_gate() -> None:
    assert combine_gates(()) is None
