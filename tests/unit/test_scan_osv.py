"""Advisories in the OSV format: what they are about, and what cannot be told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.advisories import CRITICAL, advisory
from vmrun.model.errors import ImageError
from vmrun.model.scan import Severity
from vmrun.scan.osv import Advisory, Affected, Event, matches, parse_advisory

NO, YES, UNSURE = "no", "yes", "unsure"


def affected(*events: tuple[str, str], versions: tuple[str, ...] = ()) -> Affected:
    ranges = (tuple(Event(kind, version) for kind, version in events),) if events else ()
    return Affected("PyPI", "parrot", ranges, versions)


def answer(item: Affected, version: str) -> str:
    match = matches(item, version)
    if match is None:
        return NO
    return YES if match.certain else UNSURE


def parse(item: dict[str, Any]) -> Advisory | None:
    return parse_advisory(json.dumps(item).encode(), "a.json")


I0, I1, I2 = ("introduced", "0"), ("introduced", "1.0"), ("introduced", "2.0")


@pytest.mark.parametrize(
    ("events", "version", "expected"),
    [
        # everything, and everything before a fix
        ((I0,), "9", YES),
        ((I0, ("fixed", "1.0")), "0.9", YES),
        ((I0, ("fixed", "1.0")), "1.0", NO),
        ((I0, ("fixed", "1.0")), "1.0rc1", YES),
        # introduced by a version; a fix excludes itself, the last affected does not
        ((I1, ("fixed", "1.5")), "0.9", NO),
        ((I1, ("fixed", "1.5")), "1.0", YES),
        ((I1, ("last_affected", "1.5")), "1.5", YES),
        ((I1, ("last_affected", "1.5")), "1.5.post1", NO),
        # several branches, in any order
        ((I1, ("fixed", "1.5"), I2, ("fixed", "2.5")), "1.7", NO),
        ((I1, ("fixed", "1.5"), I2, ("fixed", "2.5")), "2.4", YES),
        ((("fixed", "2.5"), I2, ("fixed", "1.5"), I1), "1.4", YES),
        ((("fixed", "2.5"), I2, ("fixed", "1.5"), I1), "1.5", NO),
        # introduced again by the very version that fixed it
        ((I1, ("fixed", "2.0"), I2), "2.0", YES),
        # limits cut off whatever is beyond all of them
        ((I0, ("limit", "1.0")), "0.9", YES),
        ((I0, ("limit", "1.0")), "1.0", NO),
        ((I0, ("limit", "1.0"), ("limit", "2.0")), "1.5", YES),
        ((I0, ("limit", "*")), "9", YES),
        # what cannot be compared may be affected
        ((I0, ("fixed", "soon")), "1.0", UNSURE),
        ((I0, ("fixed", "1.0")), "built-by-bob", UNSURE),
        ((I1,), "built-by-bob", UNSURE),
        ((I0, ("limit", "never")), "1.0", UNSURE),
        # the schema requires an introduction; without one nobody knows
        ((("fixed", "1.0"),), "0.5", UNSURE),
    ],
)
def test_ranges(events: tuple[tuple[str, str], ...], version: str, expected: str) -> None:
    assert answer(affected(*events), version) == expected


@pytest.mark.parametrize(
    ("versions", "version", "expected"),
    [
        (("1.0", "1.1"), "1.1", YES),
        (("1.0", "1.1"), "1.1.0", YES),
        (("1.0", "1.1"), "1.2", NO),
        (("1.0",), "built-by-bob", UNSURE),
        (("built-by-bob",), "built-by-bob", YES),
        ((), "1.0", UNSURE),
    ],
)
def test_listed_versions(versions: tuple[str, ...], version: str, expected: str) -> None:
    assert answer(affected(versions=versions), version) == expected


def test_a_listed_version_counts_whatever_the_ranges_say() -> None:
    item = affected(I0, ("fixed", "1.0"), versions=("3.0",))
    assert answer(item, "3.0") == YES
    assert answer(item, "2.0") == NO


def test_the_fix_is_the_next_one() -> None:
    item = affected(I0, ("fixed", "1.5"), I2, ("fixed", "2.5"))
    match = matches(item, "1.0")
    assert match is not None
    assert match.fixed == "1.5"


def test_withdrawn_is_none() -> None:
    assert parse(advisory(withdrawn="2026-01-01T00:00:00Z")) is None


def test_commits_are_not_versions() -> None:
    item = advisory()
    item["affected"][0]["ranges"] = [
        {"type": "GIT", "repo": "https://example.com/r", "events": [{"introduced": "0"}]}
    ]
    parsed = parse(item)
    assert parsed is not None
    assert answer(parsed.affected[0], "1.0") == NO


@pytest.mark.parametrize(
    ("more", "severity", "score"),
    [
        ({"severity": [{"type": "CVSS_V3", "score": CRITICAL}]}, Severity.CRITICAL, 9.8),
        (
            {"severity": [{"type": "CVSS_V2", "score": "AV:N/AC:L/Au:N/C:P/I:P/A:P"}]},
            Severity.HIGH,
            7.5,
        ),
        (
            {
                "severity": [
                    {"type": "CVSS_V3", "score": "CVSS:3.1/AV:L/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N"},
                    {
                        "type": "CVSS_V4",
                        "score": "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N",
                    },
                ]
            },
            Severity.CRITICAL,
            9.3,
        ),
        ({"database_specific": {"severity": "MODERATE"}}, Severity.MEDIUM, None),
        ({"database_specific": {"severity": "whatever"}}, Severity.UNKNOWN, None),
        ({"database_specific": {"severity": 7}}, Severity.UNKNOWN, None),
        ({"database_specific": {}}, Severity.UNKNOWN, None),
        # a vector that nobody can read rates nothing
        (
            {"severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/nonsense"}]},
            Severity.HIGH,  # by the database's own word
            None,
        ),
        (
            {"severity": [{"type": "X", "score": "NaN"}], "database_specific": {}},
            Severity.UNKNOWN,
            None,
        ),
    ],
)
def test_severity(more: dict[str, Any], severity: Severity, score: float | None) -> None:
    parsed = parse(advisory(**more))
    assert parsed is not None
    assert (parsed.severity, parsed.score) == (severity, score)


def test_severity_of_the_affected_package() -> None:
    item = advisory(database_specific={})
    item["affected"][0]["severity"] = [{"type": "CVSS_V3", "score": CRITICAL}]
    parsed = parse(item)
    assert parsed is not None
    assert parsed.severity is Severity.CRITICAL


@pytest.mark.parametrize(
    "broken",
    [
        {"id": None},
        {"id": 7},
        {"aliases": "CVE-1"},
        {"aliases": [1]},
        {"affected": {}},
        {"affected": [{"package": {"ecosystem": "PyPI"}}]},
        {"affected": [{"package": {"ecosystem": "PyPI", "name": "p"}, "versions": "1.0"}]},
        {"affected": [{"package": {"ecosystem": "PyPI", "name": "p"}, "ranges": [{}]}]},
        {
            "affected": [
                {
                    "package": {"ecosystem": "PyPI", "name": "p"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"appeared": "1"}]}],
                }
            ]
        },
        {"severity": [{"type": "CVSS_V3", "score": 9.8}]},
    ],
)
def test_malformed_is_an_error(broken: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match=r"a\.json"):
        parse({**advisory(), **broken})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(advisory())), _JSON)
def test_any_field_may_be_anything(key: str, value: Any) -> None:
    try:
        parsed = parse({**advisory(), key: value})
    except ImageError:
        return
    assert parsed is None or parsed.id
