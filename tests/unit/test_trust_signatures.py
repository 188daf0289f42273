"""Signatures in both of cosign's formats: what counts, what does not, and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.artifacts import MemoryArtifacts, described
from vmrun.image.document import object_at
from vmrun.image.manifest import OCI_MANIFEST
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, TrustError
from vmrun.model.image import Descriptor
from vmrun.model.trust import SignatureFormat
from vmrun.trust.attached import MOST, suffix_tag
from vmrun.trust.bundle import MEDIA_TYPE, SIGN_PREDICATE, make_bundle, parse_bundle
from vmrun.trust.dsse import (
    Subject,
    parse_envelope,
    parse_statement,
    pre_authentication_encoding,
    read_envelope,
    sign_envelope,
    statement,
)
from vmrun.trust.keys import PrivateKey
from vmrun.trust.signatures import PAYLOAD_TYPE, SIGNATURE, Checked, check, collect
from vmrun.trust.signing import sign_image
from vmrun.trust.simple_signing import Payload, make_payload, parse_payload

OURS, THEIRS, OTHER = (PrivateKey.generate() for _ in range(3))
NAME = "registry.example.com/team/app:1"
NOW = 1_700_000_000.0
SIMPLE, BUNDLE = SignatureFormat.SIMPLE_SIGNING, SignatureFormat.BUNDLE


@pytest.fixture
def store() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture
def image(store: MemoryArtifacts) -> Descriptor:
    return store.put_image()


def checked(
    store: MemoryArtifacts, *digests: Digest, keys: list[PrivateKey] | None = None
) -> Checked:
    public = [key.public for key in keys or [OURS]]
    return check(collect(store, digests), public, digests)


def sig_tag(image: Descriptor) -> str:
    return suffix_tag(image.digest, "sig")


def simple_layer(
    payload: bytes, key: PrivateKey = OURS, notes: Mapping[str, str] | None = None
) -> tuple[str, bytes, Mapping[str, str]]:
    signature = base64.b64encode(key.sign(payload)).decode()
    return PAYLOAD_TYPE, payload, {SIGNATURE: signature} if notes is None else notes


def put_bundle(
    store: MemoryArtifacts, subject: Digest, bundle: bytes, *, kind: str = MEDIA_TYPE, **more: Any
) -> None:
    layer = store.put_blob(kind, bundle)
    manifest = {
        "schemaVersion": 2,
        "layers": [described(layer)],
        "subject": {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 1},
        **more,
    }
    store.put_manifest(OCI_MANIFEST, json.dumps(manifest).encode())


def bundle_of(text: bytes, key: PrivateKey = OURS) -> bytes:
    return make_bundle(sign_envelope(text, key), key.public.key_id)


# --- what counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [(SIMPLE,), (BUNDLE,), (SIMPLE, BUNDLE)])
def test_a_signature_claims_who_what_and_when(
    store: MemoryArtifacts, image: Descriptor, formats: tuple[SignatureFormat, ...]
) -> None:
    assert checked(store, image.digest) == Checked((), ())
    sign_image(store, image, NAME, OURS, now=NOW + 0.7, formats=formats)
    found = checked(store, image.digest, keys=[THEIRS, OURS])
    assert [claim.format for claim in found.claims] == list(formats)
    assert found.rejections == ()
    for claim in found.claims:
        assert claim.key_id == OURS.public.key_id
        assert (claim.digest, claim.identity, claim.signed_at) == (image.digest, NAME, NOW)
        assert claim.creator.startswith("vmrun ")


def test_other_keys_do_not_count_and_are_not_forgotten(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    sign_image(store, image, NAME, THEIRS, now=NOW)
    found = checked(store, image.digest, keys=[OURS, OTHER])
    assert found.claims == ()
    assert len(found.rejections) == 2
    assert all("by none of these keys" in reason for reason in found.rejections)


def test_an_index_vouches_for_what_it_leads_to(store: MemoryArtifacts) -> None:
    index, manifest = store.put_image("index"), store.put_image("manifest")
    sign_image(store, index, NAME, OURS, now=NOW)
    assert checked(store, index.digest, manifest.digest).claims
    assert not checked(store, manifest.digest).claims


@pytest.mark.parametrize("form", [SIMPLE, BUNDLE])
def test_what_vouches_for_another_image_does_not_count_where_it_is_put(
    store: MemoryArtifacts, image: Descriptor, form: SignatureFormat
) -> None:
    """Whoever writes to the registry moves good signatures of other images here."""
    other = store.put_image("other")
    sign_image(store, other, NAME, OURS, now=NOW, formats=[form])
    if form is SIMPLE:
        store.tags[sig_tag(image)] = store.tags[sig_tag(other)]
    else:
        (referrer,) = store.referrers(other.digest)
        data = store.manifests[referrer.descriptor.digest].data
        moved = data.replace(other.digest.hex.encode(), image.digest.hex.encode())
        store.put_manifest(OCI_MANIFEST, moved)
    found = checked(store, image.digest)
    assert found.claims == ()
    assert "another image" in found.rejections[0]
    # Nor where both are on the way to an image: it would be found under the wrong one.
    lineage = (image.digest, other.digest)
    assert {claim.digest for claim in checked(store, *lineage).claims} == {other.digest}
    assert len(checked(store, *lineage).rejections) == 1


def test_a_changed_payload_is_by_nobody(store: MemoryArtifacts, image: Descriptor) -> None:
    payload = make_payload(Payload(image.digest, NAME), {})
    _, _, notes = simple_layer(payload)
    renamed = payload.replace(b"team/app", b"evil/app")
    store.put_layers(sig_tag(image), simple_layer(renamed, notes=notes))
    assert "by none of these keys" in checked(store, image.digest).rejections[0]


def test_every_key_of_an_envelope_counts_for_itself(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    text = statement(Subject(NAME, image.digest), SIGN_PREDICATE, {})
    one, other = sign_envelope(text, OURS), sign_envelope(text, THEIRS)
    one["signatures"] = [*one["signatures"], *other["signatures"]]  # type: ignore[misc]
    put_bundle(store, image.digest, make_bundle(one, OURS.public.key_id))
    found = checked(store, image.digest, keys=[OURS, THEIRS, OTHER, OURS])
    assert {c.key_id for c in found.claims} == {OURS.public.key_id, THEIRS.public.key_id}
    assert len(found.claims) == 2


# --- simple signing --------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "critical": {
        "identity": {"docker-reference": NAME},
        "image": {"docker-manifest-digest": f"sha256:{'a' * 64}"},
        "type": "cosign container image signature",
    },
    "optional": {"creator": "somebody", "timestamp": 12, "theirs": {"own": ["field"]}},
}


def test_a_payload_is_read_as_containers_image_does() -> None:
    said = parse_payload(json.dumps(GOOD).encode(), "p")
    assert (said.identity, said.creator, said.timestamp) == (NAME, "somebody", 12)
    cosign = parse_payload(json.dumps({**GOOD, "optional": None}).encode(), "p")
    assert (cosign.creator, cosign.timestamp) == ("", None)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("more",), 1),
        (("critical", "more"), 1),
        (("critical", "identity", "more"), 1),
        (("critical", "image", "more"), 1),
        (("critical", "type"), "atomic container signature"),
        (("critical", "type"), None),
        (("critical", "identity"), NAME),
        (("critical", "identity", "docker-reference"), 7),
        (("critical", "image", "docker-manifest-digest"), "sha256:short"),
        (("critical", "image", "docker-manifest-digest"), None),
        (("optional",), []),
        (("optional", "timestamp"), "12"),
        (("optional", "timestamp"), -1),
        (("optional", "timestamp"), True),
        (("optional", "creator"), 1),
    ],
)
def test_a_payload_that_says_more_or_less_is_refused(place: tuple[str, ...], value: object) -> None:
    fields = json.loads(json.dumps(GOOD))
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(TrustError, match=r"^p: "):
        parse_payload(json.dumps(fields).encode(), "p")


@pytest.mark.parametrize("missing", ["critical", "optional"])
def test_a_payload_without_a_part_is_refused(missing: str) -> None:
    fields = {key: value for key, value in GOOD.items() if key != missing}
    with pytest.raises(TrustError, match=missing):
        parse_payload(json.dumps(fields).encode(), "p")


def test_a_payload_with_a_name_twice_is_refused() -> None:
    text = json.dumps(GOOD).replace(
        '"docker-reference"', '"docker-reference": "x", "docker-reference"'
    )
    with pytest.raises(TrustError, match="duplicate"):
        parse_payload(text.encode(), "p")


def test_cosigns_own_signature_without_optional_fields_counts(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    fields = json.loads(make_payload(Payload(image.digest, "registry.example.com/team/app"), {}))
    payload = json.dumps({**fields, "optional": None}).encode()
    store.put_layers(sig_tag(image), simple_layer(payload))
    (claim,) = checked(store, image.digest).claims
    assert (claim.identity, claim.signed_at) == ("registry.example.com/team/app", None)


# --- bundles ---------------------------------------------------------------------------------


def test_a_bundle_without_a_name_claims_none(store: MemoryArtifacts, image: Descriptor) -> None:
    text = statement(Subject("", image.digest), SIGN_PREDICATE, {})
    put_bundle(store, image.digest, bundle_of(text))
    (claim,) = checked(store, image.digest).claims
    assert (claim.identity, claim.creator, claim.signed_at) == ("", "", None)


def test_one_signature_is_for_one_image(store: MemoryArtifacts, image: Descriptor) -> None:
    fields = json.loads(statement(Subject(NAME, image.digest), SIGN_PREDICATE, {}))
    fields["subject"] *= 2
    put_bundle(store, image.digest, bundle_of(json.dumps(fields).encode()))
    found = checked(store, image.digest)
    assert found.claims == ()
    assert "2 subjects" in found.rejections[0]


def test_an_attestation_is_no_signature(store: MemoryArtifacts, image: Descriptor) -> None:
    text = statement(Subject(NAME, image.digest), "https://cyclonedx.org/bom", {})
    put_bundle(store, image.digest, bundle_of(text))
    assert checked(store, image.digest) == Checked((), ())
    labelled = {"dev.sigstore.bundle.predicateType": SIGN_PREDICATE}
    put_bundle(store, image.digest, bundle_of(text), annotations=labelled)
    assert checked(store, image.digest).claims == ()


def test_attestations_are_not_even_downloaded(store: MemoryArtifacts, image: Descriptor) -> None:
    large = statement(
        Subject(NAME, image.digest), "https://cyclonedx.org/bom", {"x": "y" * 100_000}
    )
    labelled = {"dev.sigstore.bundle.predicateType": "https://cyclonedx.org/bom"}
    put_bundle(store, image.digest, bundle_of(large), annotations=labelled)
    assert checked(store, image.digest) == Checked((), ())
    assert store.read_bytes == 0


def test_the_type_of_the_payload_is_signed_along(store: MemoryArtifacts, image: Descriptor) -> None:
    """Else bytes that were signed as one thing could be shown as another."""
    text = statement(Subject(NAME, image.digest), SIGN_PREDICATE, {})
    signature = OURS.sign(pre_authentication_encoding("application/x-other", text))
    envelope = sign_envelope(text, OURS)
    envelope["signatures"] = [{"sig": base64.b64encode(signature).decode()}]
    put_bundle(store, image.digest, make_bundle(envelope, OURS.public.key_id))
    envelope["payloadType"] = "application/x-other"
    put_bundle(store, image.digest, make_bundle(envelope, OURS.public.key_id))
    found = checked(store, image.digest)
    assert found.claims == ()
    assert len(found.rejections) == 2


def test_the_encoding_is_that_of_the_specification() -> None:
    """The example of secure-systems-lab/dsse, protocol.md."""
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1"},
        {"dsseEnvelope": None},
        {"dsseEnvelope": {"payloadType": "application/vnd.in-toto+json"}},
        {"messageSignature": {}, "dsseEnvelope": None},
    ],
)
def test_bundles_of_other_kinds_are_named_as_such(
    store: MemoryArtifacts, image: Descriptor, change: dict[str, Any]
) -> None:
    text = statement(Subject(NAME, image.digest), SIGN_PREDICATE, {})
    bundle = {**json.loads(bundle_of(text)), **change}
    put_bundle(store, image.digest, json.dumps(bundle).encode())
    found = checked(store, image.digest)
    assert found.claims == ()
    assert len(found.rejections) == 1


# --- hostile stores --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"layers": 1}', b'{"layers": [{}]}', b'{"layers": [{"mediaType": 1}]}'],
)
def test_malformed_manifests_are_reasons_and_not_failures(
    store: MemoryArtifacts, image: Descriptor, data: bytes
) -> None:
    sign_image(store, image, NAME, OURS, now=NOW, formats=[BUNDLE])
    store.put_manifest(OCI_MANIFEST, data, sig_tag(image))
    found = checked(store, image.digest)
    assert len(found.claims) == 1
    assert len(found.rejections) == 1


def test_bad_layers_do_not_hide_the_good_one(store: MemoryArtifacts, image: Descriptor) -> None:
    good = make_payload(Payload(image.digest, NAME), {})
    store.put_layers(
        sig_tag(image),
        simple_layer(b"not JSON"),
        simple_layer(good, notes={}),
        simple_layer(good, notes={SIGNATURE: "***"}),
        ("application/octet-stream", b"x" * 70_000, {}),
        (PAYLOAD_TYPE, b" " * (64 * 1024 + 1), {SIGNATURE: "AAAA"}),
        simple_layer(good),
    )
    found = checked(store, image.digest)
    assert len(found.claims) == 1
    assert len(found.rejections) == 5


def test_numbers_and_sizes_are_bounded(store: MemoryArtifacts, image: Descriptor) -> None:
    payload = b"x" * 60_000
    layers = [(PAYLOAD_TYPE, payload + b"%d" % n, {SIGNATURE: "AAAA"}) for n in range(MOST + 1)]
    store.put_layers(sig_tag(image), *layers)
    found = checked(store, image.digest)
    assert "128" in found.rejections[0]
    assert store.read_bytes == 0
    for number in range(MOST + 40):
        text = statement(
            Subject(NAME, image.digest), SIGN_PREDICATE, {"n": number, "x": "x" * 1000}
        )
        put_bundle(store, image.digest, bundle_of(text, THEIRS))
    found = checked(store, image.digest)
    assert any("only 128 referrers" in reason for reason in found.rejections)
    assert 0 < store.read_bytes <= MOST * 256 * 1024


def test_a_bundle_of_megabytes_is_not_downloaded(store: MemoryArtifacts, image: Descriptor) -> None:
    text = statement(Subject(NAME, image.digest), SIGN_PREDICATE, {"x": "y" * 300_000})
    put_bundle(store, image.digest, bundle_of(text))
    assert "the limit is" in checked(store, image.digest).rejections[0]
    assert store.read_bytes == 0


def test_what_is_listed_for_this_image_must_say_so(store: MemoryArtifacts) -> None:
    class Lying(MemoryArtifacts):
        def referrers(self, subject: Digest) -> Any:
            return tuple(r for s in (one, other) for r in super(Lying, self).referrers(s.digest))

    store = Lying()
    one, other = store.put_image("one"), store.put_image("other")
    text = statement(Subject(NAME, one.digest), SIGN_PREDICATE, {})
    put_bundle(store, other.digest, bundle_of(text))
    found = checked(store, one.digest)
    assert found.claims == ()
    assert "is about" in found.rejections[0]


def test_a_bundle_has_one_layer(store: MemoryArtifacts, image: Descriptor) -> None:
    text = statement(Subject(NAME, image.digest), SIGN_PREDICATE, {})
    layer = described(store.put_blob(MEDIA_TYPE, bundle_of(text)))
    put_bundle(store, image.digest, bundle_of(text), layers=[layer, layer])
    assert "2 layers" in checked(store, image.digest).rejections[0]


@pytest.mark.parametrize("method", ["manifest", "referrers", "blob"])
def test_not_being_able_to_look_is_not_unsigned(
    store: MemoryArtifacts,
    image: Descriptor,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign_image(store, image, NAME, OURS, now=NOW)

    def fail(*_: object) -> None:
        raise ImageError("the registry does not answer")

    monkeypatch.setattr(store, method, fail)
    with pytest.raises(ImageError, match="does not answer"):
        collect(store, (image.digest,))


# --- signing ---------------------------------------------------------------------------------


def test_signing_again_takes_the_place_of_the_same_words_only(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    def sign(key: PrivateKey, name: str, at: float, **notes: str) -> None:
        sign_image(store, image, name, key, now=at, formats=[SIMPLE], annotations=notes)

    for key, name in ((OURS, NAME), (THEIRS, NAME), (OURS, NAME.replace(":1", ":2"))):
        sign(key, name, NOW)
    sign(OURS, NAME, NOW, team="payments")
    assert len(store.layers(sig_tag(image))) == 4
    sign(OURS, NAME, NOW + 10)
    assert len(store.layers(sig_tag(image))) == 4
    times = {
        (claim.key_id, claim.identity, claim.signed_at)
        for claim in checked(store, image.digest, keys=[OURS, THEIRS]).claims
    }
    assert (OURS.public.key_id, NAME, NOW + 10) in times
    assert (THEIRS.public.key_id, NAME, NOW) in times


def test_what_others_put_there_stays_as_it_is(store: MemoryArtifacts, image: Descriptor) -> None:
    """cosign's certificates and logs are annotations of its layers."""
    said = make_payload(Payload(image.digest, NAME), {})
    logged = simple_layer(said)
    logged = (*logged[:2], {**logged[2], "dev.sigstore.cosign/bundle": "{}"})
    store.put_layers(sig_tag(image), logged, ("application/x-theirs", b"data", {"own": "note"}))
    before = store.layers(sig_tag(image))
    sign_image(store, image, NAME, OURS, now=NOW, formats=[SIMPLE])
    assert store.layers(sig_tag(image))[:2] == before


def test_two_who_sign_at_once_both_stay(image: Descriptor) -> None:
    class Busy(MemoryArtifacts):
        """Another signer's manifest takes the place of the first one that is put."""

        others = True

        def put_manifest(self, kind: str, data: bytes, tag: str | None = None) -> Descriptor:
            put = super().put_manifest(kind, data, tag)
            if tag and self.others:
                self.others = False
                theirs = make_payload(Payload(image.digest, NAME), {})
                self.put_layers(tag, simple_layer(theirs, THEIRS))
            return put

    store = Busy()
    sign_image(store, image, NAME, OURS, now=NOW, formats=[SIMPLE])
    found = checked(store, image.digest, keys=[OURS, THEIRS])
    assert {c.key_id for c in found.claims} == {OURS.public.key_id, THEIRS.public.key_id}


def test_nobody_signs_for_ever_against_a_store_that_forgets(image: Descriptor) -> None:
    class Forgetful(MemoryArtifacts):
        def manifest(self, name: str | Digest) -> None:
            return None

    with pytest.raises(TrustError, match="keeps changing"):
        sign_image(Forgetful(), image, NAME, OURS, now=NOW)


@pytest.mark.parametrize("form", [SIMPLE, BUNDLE])
def test_a_signature_that_nobody_would_read_is_not_written(
    store: MemoryArtifacts, image: Descriptor, form: SignatureFormat
) -> None:
    names = [f"{NAME}-{number}" for number in range(MOST)]
    if form is SIMPLE:
        payloads = [make_payload(Payload(image.digest, name), {}) for name in names]
        store.put_layers(sig_tag(image), *map(simple_layer, payloads))
    else:
        for name in names:
            text = statement(Subject(name, image.digest), SIGN_PREDICATE, {})
            put_bundle(store, image.digest, bundle_of(text))
    assert len(checked(store, image.digest).claims) == MOST
    with pytest.raises(TrustError, match="128"):
        sign_image(store, image, NAME, OURS, now=NOW, formats=[form])


def test_what_is_there_and_broken_is_not_replaced(
    store: MemoryArtifacts, image: Descriptor
) -> None:
    store.put_manifest(OCI_MANIFEST, b'{"manifests": []}', sig_tag(image))
    with pytest.raises(TrustError, match="cannot add"):
        sign_image(store, image, NAME, OURS, now=NOW)
    assert len(store.manifests) == 2


@pytest.mark.parametrize("form", [SIMPLE, BUNDLE])
@pytest.mark.parametrize(
    "annotations",
    [{"creator": "you"}, {"timestamp": "0"}, {"a": "\udc80"}, {"a": "\0"}, {"a": "x" * (1 << 17)}],
    ids=["creator", "timestamp", "surrogate", "nul", "large"],
)
def test_annotations_that_could_not_be_read_are_not_signed(
    store: MemoryArtifacts,
    image: Descriptor,
    form: SignatureFormat,
    annotations: dict[str, str],
) -> None:
    blobs = dict(store.blobs)
    with pytest.raises(TrustError):
        sign_image(store, image, NAME, OURS, now=NOW, formats=[form], annotations=annotations)
    assert store.blobs == blobs


# --- any bytes -------------------------------------------------------------------------------

FIELDS = [
    *("critical", "optional", "identity", "image", "type", "docker-reference", "timestamp"),
    *("payload", "payloadType", "signatures", "sig", "subject", "digest", "sha256", "_type"),
    *("predicateType", "predicate", "mediaType", "dsseEnvelope"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@settings(deadline=None, max_examples=100)
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100))
def test_no_bytes_are_more_than_an_error(data: bytes) -> None:
    for read in (parse_payload, parse_bundle, parse_statement, read_envelope):
        try:
            read(data, "here")
        except TrustError as error:
            assert str(error).startswith("here")  # noqa: PT017 - it may just as well be read
    image = Digest.of(data)
    store = MemoryArtifacts()
    signature = {SIGNATURE: base64.b64encode(OURS.sign(data)).decode()}
    store.put_layers(suffix_tag(image, "sig"), (PAYLOAD_TYPE, data, signature))
    put_bundle(store, image, data)
    signed = pre_authentication_encoding("application/vnd.in-toto+json", data)
    envelope = {**sign_envelope(data, OURS)}
    assert parse_envelope(object_at(envelope, "e")).signed == signed
    put_bundle(store, image, make_bundle(envelope, OURS.public.key_id))
    assert checked(store, image).claims == ()
