"""OpenVEX documents: read strictly, and the last word counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmrun.model.errors import ScanError
from vmrun.policy.scan_gate import VexStatement
from vmrun.scan.openvex import read_openvex

PRODUCT = "pkg:oci/app@sha256:" + "0" * 64


def said(status: str = "not_affected", **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vulnerability": {"name": "CVE-2026-1", "aliases": ["GHSA-1"]},
        "products": [{"@id": PRODUCT}],
        "status": status,
    }
    if status == "not_affected":
        fields["justification"] = "vulnerable_code_not_present"
    return {**fields, **more}


def read(tmp_path: Path, *statements: Any, **more: Any) -> tuple[VexStatement, ...]:
    document = {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": "https://example.com/vex/1",
        "author": "security@example.com",
        "timestamp": "2026-01-01T00:00:00Z",
        "version": 1,
        "statements": list(statements),
    }
    path = tmp_path / "vex.json"
    path.write_text(json.dumps({**document, **more}))
    return read_openvex(path)


@pytest.mark.parametrize("status", ["not_affected", "fixed"])
def test_what_excuses(tmp_path: Path, status: str) -> None:
    (statement,) = read(tmp_path, said(status))
    assert statement.names == ("CVE-2026-1", "GHSA-1")
    assert statement.product == (PRODUCT,)
    assert statement.reason.startswith(status)


@pytest.mark.parametrize("status", ["affected", "under_investigation"])
def test_what_does_not(tmp_path: Path, status: str) -> None:
    assert read(tmp_path, said(status)) == ()


def test_each_part_of_a_product_is_a_statement(tmp_path: Path) -> None:
    product = {
        "@id": PRODUCT,
        "subcomponents": [
            {"@id": "pkg:pypi/parrot@1.0"},
            {"identifiers": {"purl": "pkg:pypi/slug@1.0", "cpe23": "cpe:2.3:a:b:c"}},
        ],
    }
    first, second = read(tmp_path, said(products=[product]))
    assert first.product == second.product == (PRODUCT,)
    assert first.component == ("pkg:pypi/parrot@1.0",)
    assert second.component == ("pkg:pypi/slug@1.0", "cpe:2.3:a:b:c")


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_taken_back_later_does_not_excuse(tmp_path: Path, order: int) -> None:
    first = said(timestamp="2026-02-01T00:00:00Z")
    later = said("affected", timestamp="2026-03-01T00:00:00+01:00")
    assert read(tmp_path, *[first, later][::order]) == ()
    assert len(read(tmp_path, first, said("affected", timestamp="2026-01-01T00:00:00Z"))) == 1
    assert read(tmp_path, said(), said("affected")) == ()  # both at once: the worse counts


def test_the_whole_product_takes_back_its_parts(tmp_path: Path) -> None:
    part = {"@id": PRODUCT, "subcomponents": [{"@id": "pkg:pypi/parrot"}]}
    later = said("under_investigation", timestamp="2026-03-01T00:00:00Z")
    assert read(tmp_path, said(products=[part]), later) == ()


def test_other_vulnerabilities_are_not_taken_back(tmp_path: Path) -> None:
    later = said("affected", vulnerability={"name": "CVE-9"}, timestamp="2026-03-01T00:00:00Z")
    assert len(read(tmp_path, said(), later)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        said("unaffected"),
        said(justification=None),
        said(justification="made_up", impact_statement="trust me"),
        said(products=[]),
        said(products=None),
        said(products=[{}]),
        said(products=[{"@id": PRODUCT, "subcomponents": [{}]}]),
        said(vulnerability={}),
        said(vulnerability="CVE-2026-1"),
        said(timestamp="yesterday"),
        "not_affected",
    ],
)
def test_malformed_statements_are_errors(tmp_path: Path, statement: Any) -> None:
    with pytest.raises(ScanError):
        read(tmp_path, statement)


@pytest.mark.parametrize(
    "more",
    [
        {"@context": "https://example.com"},
        {"@id": None},
        {"author": None},
        {"timestamp": None},
        {"version": "1"},
        {"statements": None},
    ],
)
def test_malformed_documents_are_errors(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ScanError):
        read(tmp_path, said(), **more)


def test_an_impact_statement_is_a_reason(tmp_path: Path) -> None:
    (statement,) = read(tmp_path, said(justification=None, impact_statement="we never call it"))
    assert "we never call it" in statement.reason


def test_a_document_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="does not exist"):
        read_openvex(tmp_path / "none.json")
