"""The order of versions, as each package system has it; and that an unknown one is not guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.scan.versions import compare

ASCENDING = {
    "Debian:12": [
        "1.0~rc1-1", "1.0-1~bpo12+1", "1.0-1", "1.0-1+b1", "1.0-1+deb12u2", "1.0-1+deb12u10",
        "1.0-1.1", "1.0-2", "1.9", "1.10", "1:0.1",
    ],
    "Alpine:v3.20": [
        "1.0_alpha2-r0", "1.0_rc1-r0", "1.0-r0", "1.0-r9", "1.0-r10", "1.0_git20230717-r4",
        "1.0_git20240101-r0", "1.0a-r0", "1.0.1-r0", "1.9-r0", "1.10-r0",
    ],
    "PyPI": ["1.0.dev1", "1.0a1", "1.0rc1", "1.0", "1.0+local", "1.0.post1", "1.9", "1.10", "1!0"],
    "npm": [
        "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-rc.2",
        "1.0.0-rc.11", "1.0.0", "1.9.0", "1.10.0",
    ],
}  # fmt: skip


@pytest.mark.parametrize("ecosystem", ASCENDING)
def test_order_is_that_of_the_package_system(ecosystem: str) -> None:
    versions = ASCENDING[ecosystem]
    for at, one in enumerate(versions):
        for other_at, other in enumerate(versions):
            expected = (at > other_at) - (at < other_at)
            assert compare(ecosystem, one, other) == expected, (one, other)


@pytest.mark.parametrize(
    ("ecosystem", "one", "other"),
    [
        ("PyPI", "1.0", "1.0.0"),
        ("PyPI", "1.0RC1", "1.0rc1"),
        ("npm", "1.0.0", "v1.0.0"),
        ("npm", "1.0.0", "1.0.0+build.7"),
        ("Debian:12", "1.0", "0:1.0-0"),
    ],
)
def test_spellings_of_one_version_are_equal(ecosystem: str, one: str, other: str) -> None:
    assert compare(ecosystem, one, other) == compare(ecosystem, other, one) == 0


@pytest.mark.parametrize("ecosystem", ASCENDING)
@pytest.mark.parametrize("version", ["", "latest", "${VERSION}", "1.0 ; rm", "1.0\n", "9" * 300])
def test_what_is_no_version_is_not_compared(ecosystem: str, version: str) -> None:
    assert compare(ecosystem, version, "1.0") is None
    assert compare(ecosystem, "1.0", version) is None


def test_unlike_snapshots_are_not_compared() -> None:
    assert compare("Alpine:v3.20", "1.0_git1-r0", "1.0_p1-r0") is None


def test_an_unknown_ecosystem_has_no_order() -> None:
    assert compare("crates.io", "1.0.0", "2.0.0") is None


@given(st.sampled_from(sorted(ASCENDING)), st.text(max_size=40), st.text(max_size=40))
def test_nothing_that_is_compared_breaks_it(ecosystem: str, one: str, other: str) -> None:
    there, back = compare(ecosystem, one, other), compare(ecosystem, other, one)
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert there == -back
