"""Attestations in both of cosign's forms: whose word counts, about which image."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.artifacts import MemoryArtifacts
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, TrustError
from vmrun.model.image import Descriptor
from vmrun.trust import attestations as module
from vmrun.trust.attached import suffix_tag
from vmrun.trust.attestations import (
    CYCLONEDX,
    ENVELOPE_TYPE,
    OPENVEX,
    VULNERABILITIES,
    Attestation,
    attest,
    attestations,
)
from vmrun.trust.bundle import parse_bundle
from vmrun.trust.dsse import LARGEST_STATEMENT, Subject, sign_envelope, statement
from vmrun.trust.keys import PrivateKey

OURS, THEIRS = PrivateKey.generate(), PrivateKey.generate()
NAME = "registry.example.com/team/app:1"
NOW = 1_700_000_000.0
REPORT: dict[str, Any] = {"scanner": {"uri": "x", "result": [1, 2, {"deep": None}]}}
NOTES = {"predicateType": VULNERABILITIES}


@pytest.fixture
def store() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture
def image(store: MemoryArtifacts) -> Descriptor:
    return store.put_image()


def found(
    store: MemoryArtifacts, *digests: Digest, kind: str = VULNERABILITIES, key: PrivateKey = OURS
) -> tuple[tuple[Attestation, ...], tuple[str, ...]]:
    return attestations(store, digests, kind, [key.public])


def att_tag(image: Descriptor) -> str:
    return suffix_tag(image.digest, "att")


def put_legacy(store: MemoryArtifacts, image: Descriptor, text: bytes, key: PrivateKey) -> None:
    envelope = json.dumps(sign_envelope(text, key)).encode()
    store.put_layers(att_tag(image), (ENVELOPE_TYPE, envelope, NOTES))


@pytest.mark.parametrize("kind", [VULNERABILITIES, CYCLONEDX, OPENVEX])
def test_a_statement_is_found_by_its_type_and_key(
    store: MemoryArtifacts, image: Descriptor, kind: str
) -> None:
    assert found(store, image.digest, kind=kind) == ((), ())
    attest(store, image, NAME, kind, REPORT, OURS, now=NOW)
    (one,), rejections = found(store, image.digest, kind=kind)  # both forms say the same
    assert rejections == ()
    assert (one.key_id, one.digest) == (OURS.public.key_id, image.digest)
    assert one.statement.predicate == REPORT
    assert one.statement.subjects == (Subject(NAME, image.digest),)
    assert found(store, image.digest, kind="https://example.com/other") == ((), ())
    none, why = found(store, image.digest, kind=kind, key=THEIRS)
    assert none == ()
    assert len(why) == 2


@pytest.mark.parametrize("form", ["legacy", "bundle"])
def test_either_form_is_enough(store: MemoryArtifacts, image: Descriptor, form: str) -> None:
    attest(store, image, NAME, VULNERABILITIES, REPORT, OURS, now=NOW)
    if form == "legacy":
        store.manifests = {d: m for d, m in store.manifests.items() if b'"subject"' not in m.data}
    else:
        del store.tags[att_tag(image)]
    assert len(found(store, image.digest)[0]) == 1


def test_a_statement_about_another_image_does_not_count(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    other = store.put_image("other")
    text = statement(Subject(NAME, other.digest), VULNERABILITIES, REPORT)
    put_legacy(store, image, text, OURS)
    none, (why,) = found(store, image.digest, other.digest)
    assert none == ()
    assert "another image" in why


def test_a_statement_of_another_type_than_its_label_does_not_count(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    text = statement(Subject(NAME, image.digest), CYCLONEDX, REPORT)
    put_legacy(store, image, text, OURS)
    assert found(store, image.digest)[0] == ()


def test_unsigned_statements_are_not_even_read(
    store: MemoryArtifacts, image: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading megabytes of JSON takes memory, which nobody unknown should be given."""
    attest(store, image, NAME, VULNERABILITIES, REPORT, THEIRS, now=NOW)
    monkeypatch.setattr(module, "parse_statement", lambda *_: pytest.fail("was read"))
    assert found(store, image.digest)[0] == ()


def test_a_newer_report_takes_the_place_of_ones_own_older_one(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    attest(store, image, NAME, VULNERABILITIES, {"run": 0}, THEIRS, now=NOW)
    for number in (1, 2, 3):
        attest(store, image, NAME, VULNERABILITIES, {"run": number}, OURS, now=NOW + number)
    attest(store, image, NAME, CYCLONEDX, {"run": 4}, OURS, now=NOW)
    assert len(store.layers(att_tag(image))) == 3
    for digest in [r.descriptor.digest for r in store.referrers(image.digest)]:
        del store.manifests[digest]
    assert [a.statement.predicate for a in found(store, image.digest)[0]] == [{"run": 3}]
    assert len(found(store, image.digest, key=THEIRS)[0]) == 1
    assert len(found(store, image.digest, kind=CYCLONEDX)[0]) == 1


@pytest.mark.parametrize(
    "predicate",
    [{"x": "y" * LARGEST_STATEMENT}, {"x": "\udc80"}],
    ids=["large", "surrogate"],
)
def test_what_nobody_could_read_is_not_signed(
    store: MemoryArtifacts, image: Descriptor, predicate: dict[str, Any]
) -> None:
    with pytest.raises(TrustError):
        attest(store, image, NAME, VULNERABILITIES, predicate, OURS, now=NOW)
    assert store.blobs == {}


def test_the_largest_statement_is_read_again(store: MemoryArtifacts, image: Descriptor) -> None:
    large = {"x": "y" * (LARGEST_STATEMENT - 1000)}
    attest(store, image, NAME, VULNERABILITIES, large, OURS, now=NOW)
    (one,), rejections = found(store, image.digest)
    assert rejections == ()
    assert one.statement.predicate == large


@pytest.mark.parametrize("hostile", [b'{"x":[' + b"[]," * 300_000 + b"[]]}", b"[" * 300_000])
def test_an_envelope_that_would_fill_memory_is_not_parsed(
    store: MemoryArtifacts, image: Descriptor, hostile: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vmrun.trust.dsse", "vmrun.trust.bundle"):
        monkeypatch.setattr(f"{name}.parse_object", lambda *_: pytest.fail("was parsed"))
    store.put_layers(att_tag(image), (ENVELOPE_TYPE, hostile, NOTES))
    assert "more values" in found(store, image.digest)[1][0]
    with pytest.raises(TrustError, match="more values"):
        parse_bundle(hostile, "bundle")


def test_too_much_together_is_left_out_and_said(store: MemoryArtifacts, image: Descriptor) -> None:
    junk = [(ENVELOPE_TYPE, b"%d" % n + b" " * 10_000_000, NOTES) for n in range(9)]
    store.put_layers(att_tag(image), *junk)
    _, rejections = found(store, image.digest)
    assert sum("together" in reason for reason in rejections) == 3
    assert store.read_bytes < 64 << 20


@pytest.mark.parametrize("data", [b"", b"[]", b'{"layers": 3}'])
def test_malformed_manifests_are_reasons(
    store: MemoryArtifacts, image: Descriptor, data: bytes
) -> None:
    store.put_manifest("application/vnd.oci.image.manifest.v1+json", data, att_tag(image))
    none, rejections = found(store, image.digest)
    assert none == ()
    assert len(rejections) == 1


def test_not_being_able_to_look_is_an_error(
    store: MemoryArtifacts, image: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ImageError("the registry does not answer")

    monkeypatch.setattr(store, "referrers", fail)
    with pytest.raises(ImageError, match="does not answer"):
        found(store, image.digest)
