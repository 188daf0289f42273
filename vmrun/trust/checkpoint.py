"""Checkpoints of the journal: a signed statement of where its chain stood at some time.

A checkpoint is a DSSE envelope (secure-systems-lab/dsse, protocol v1.0.2) whose payload is a type
of vmrun's own (docs/reference/journal.md). Kept where whoever can write the journal cannot, it
shows that the journal was cut or written anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.errors import ImageError, TrustError
from vmrun.trust.dsse import check_plain, parse_envelope, sign_envelope
from vmrun.trust.keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.vmrun.journal-checkpoint+json"
LARGEST = 64 << 10
"""Bytes of a file with a checkpoint."""

_VERSION = 1
_KEYS = ("version", "seq", "hash", "time", "host", "user")
_LONGEST_NAME = 255
_LIMITS = ImageLimits(document=LARGEST)
_HASH = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_LAST_SEQ = 10**12
_HINT = "make another with 'vmrun audit checkpoint'"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """On ``host`` the journal's last entry had the number ``seq`` and the hash ``hash`` (hex) at
    ``time`` (RFC 3339, UTC); ``user`` is who said so there."""

    seq: int
    hash: str
    time: str
    host: str
    user: str


def sign_checkpoint(checkpoint: Checkpoint, key: PrivateKey) -> bytes:
    """The envelope, as JSON and a newline. Raises :class:`TrustError` for one that nobody could
    read again."""
    fields = {"version": _VERSION} | {name: getattr(checkpoint, name) for name in _KEYS[1:]}
    payload = json.dumps(fields, separators=(",", ":")).encode()
    if _parse_payload(payload, "the checkpoint") != checkpoint:
        raise TrustError("the checkpoint cannot be written down", hint="report this")
    return json.dumps(sign_envelope(payload, key, PAYLOAD_TYPE)).encode() + b"\n"


def read_checkpoint(data: bytes, where: str, key: PublicKey) -> Checkpoint:
    """What is said in an envelope that ``key`` has signed. Nothing of the payload is looked at
    before that is known. Raises :class:`TrustError`."""
    if len(data) > LARGEST:
        raise TrustError(f"{where}: more than {LARGEST} bytes", hint=_HINT)
    check_plain(data, where)
    try:
        envelope = parse_envelope(parse_object(data, where, _LIMITS), PAYLOAD_TYPE)
    except ImageError as error:
        raise TrustError(error.message, hint=_HINT) from None
    if not any(key.verify(signature, envelope.signed) for signature in envelope.signatures):
        raise TrustError(
            f"{where}: not signed with key {key.key_id}",
            hint="it was changed, or another key made it: vmrun key show FILE",
        )
    return _parse_payload(envelope.payload, where)


def _parse_payload(payload: bytes, where: str) -> Checkpoint:
    try:
        document = parse_object(payload, where, _LIMITS)
        if sorted(document.names()) != sorted(_KEYS):
            raise TrustError(f"{where}: its fields are not {', '.join(_KEYS)}", hint=_HINT)
        if document.integer("version") != _VERSION:
            raise TrustError(
                f"{where}: a checkpoint of version {document.integer('version')}",
                hint="a later vmrun made it",
            )
        seq, digest, time = document.integer("seq"), document.text("hash"), document.text("time")
        if not 0 < seq < _LAST_SEQ:
            raise document.wrong("seq", "the number of an entry")
        if _HASH.fullmatch(digest) is None:
            raise document.wrong("hash", "a hash in hex")
        if _TIME.fullmatch(time) is None:
            raise document.wrong("time", "a time in RFC 3339, UTC")
        return Checkpoint(seq, digest, time, _name(document, "host"), _name(document, "user"))
    except ImageError as error:
        raise TrustError(error.message, hint=_HINT) from None


def _name(document: Document, key: str) -> str:
    text = document.text(key)
    if not (0 < len(text) <= _LONGEST_NAME and text.isprintable()):
        raise document.wrong(key, "a name")
    return text
