"""DSSE envelopes (secure-systems-lab/dsse, protocol v1.0.2) and the in-toto statements in them
(in-toto attestation framework, Statement v1; v0.1 is what cosign 2 still writes)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, TrustError
from vmrun.trust.keys import PrivateKey
from vmrun.trust.simple_signing import placed

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
_STATEMENTS = (STATEMENT, "https://in-toto.io/Statement/v0.1")
LARGEST_ENVELOPE = 16 * MIB
LARGEST_STATEMENT = LARGEST_ENVELOPE * 3 // 4 - 64 * 1024
"""Bytes of a statement whose envelope is small enough, in base64."""
_LIMITS = ImageLimits(document=LARGEST_ENVELOPE)
_SUBJECTS = 64
_MOST_VALUES = 10_000
_SIGNATURES = 16


@dataclass(frozen=True, slots=True)
class Envelope:
    """``signed`` is what the signatures cover; ``payload`` the statement's bytes."""

    payload: bytes
    signed: bytes
    signatures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about: ``name`` may be empty."""

    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Statement:
    """Somebody says ``predicate`` of ``subjects``. The predicate is the raw JSON value."""

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, object]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that a DSSE signature covers (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(
    payload: bytes, key: PrivateKey, payload_type: str = PAYLOAD_TYPE
) -> dict[str, object]:
    """An envelope with one signature, as JSON values."""
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }


def parse_envelope(envelope: Document, payload_type: str = PAYLOAD_TYPE) -> Envelope:
    """Read an envelope of an in-toto statement, or of another type of payload, but of that one
    only. Raises :class:`TrustError`."""
    try:
        kind = envelope.text("payloadType")
        payload = decode_base64(envelope.text("payload"), envelope.where)
        found = envelope.objects("signatures", _SIGNATURES)
        signatures = tuple(decode_base64(item.text("sig"), item.where) for item in found)
    except ImageError as error:
        raise TrustError(error.message) from None
    if kind != payload_type:
        wanted = "an in-toto statement" if payload_type == PAYLOAD_TYPE else repr(payload_type)
        raise TrustError(f"{envelope.where}: its payload is {kind[:80]!r}, not {wanted}")
    return Envelope(payload, pre_authentication_encoding(kind, payload), signatures)


def read_envelope(data: bytes, where: str) -> Envelope:
    """Read an envelope from JSON. Raises :class:`TrustError`."""
    check_plain(data, where)
    try:
        return parse_envelope(parse_object(data, where, _LIMITS))
    except ImageError as error:
        raise TrustError(error.message) from None


def check_plain(data: bytes, where: str) -> None:
    """Refuse JSON of very many values before it is parsed: each takes many times the memory of
    its text. What is large in an envelope or a bundle is one string of base64."""
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > _MOST_VALUES:
        raise TrustError(f"{where}: has more values than an envelope could")


def statement(subject: Subject, predicate_type: str, predicate: Mapping[str, object]) -> bytes:
    """A statement of one subject as JSON."""
    named = {"name": subject.name} if subject.name else {}
    return json.dumps(
        {
            "_type": STATEMENT,
            "subject": [{**named, "digest": {subject.digest.algorithm: subject.digest.hex}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        },
        separators=(",", ":"),
    ).encode()


def parse_statement(payload: bytes, where: str) -> Statement:
    """Read a statement. Raises :class:`TrustError`."""
    try:
        document = parse_object(payload, where, _LIMITS)
        kind = document.text("_type")
        subjects = tuple(_subject(item) for item in document.objects("subject", _SUBJECTS))
        predicate_type = document.text("predicateType")
        document.nested("predicate")
    except ImageError as error:
        raise TrustError(placed(error.message, where)) from None
    if kind not in _STATEMENTS:
        raise TrustError(f"{where}: not an in-toto statement but {kind[:80]!r}")
    predicate = json.loads(payload)["predicate"] if "predicate" in document else {}
    return Statement(subjects, predicate_type, predicate)


def _subject(item: Document) -> Subject:
    digests = item.text_map("digest")
    return Subject(item.text("name", ""), Digest.parse(f"sha256:{digests.get('sha256', '')}"))


def decode_base64(text: str, where: str) -> bytes:
    """Base64, nothing else. Raises :class:`TrustError`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TrustError(f"{where}: not base64") from None
