"""The simple signing payload (containers-signature(5), "The atomic container signature" of cosign):
one key says that one manifest has one name.

Fields that the reader does not know are refused, and so are missing ones, as containers/image does:
they might restrict what is said. What is in ``optional`` besides cosign's own fields is free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, TrustError

TYPE = "cosign container image signature"
LARGEST_PAYLOAD = 64 * 1024
_LARGEST_ANNOTATIONS = 16 * 1024
_LIMITS = ImageLimits(document=LARGEST_PAYLOAD)
_RESERVED = ("creator", "timestamp")


@dataclass(frozen=True, slots=True)
class Payload:
    """What is signed; ``timestamp`` in seconds since 1970, by the signer's own clock."""

    digest: Digest
    identity: str
    creator: str = ""
    timestamp: int | None = None


def make_payload(payload: Payload, annotations: Mapping[str, str]) -> bytes:
    """The payload as JSON; annotations cannot replace the fields that vmrun sets."""
    optional: dict[str, object] = dict(sorted(annotations.items()))
    optional |= {"creator": payload.creator, "timestamp": payload.timestamp}
    document = {
        "critical": {
            "identity": {"docker-reference": payload.identity},
            "image": {"docker-manifest-digest": str(payload.digest)},
            "type": TYPE,
        },
        "optional": {key: value for key, value in optional.items() if value not in ("", None)},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def check_annotations(annotations: Mapping[str, str]) -> None:
    """Refuse annotations that would pass for the signer's own fields, or that a reader would not
    take. Raises :class:`TrustError`."""
    for key, value in annotations.items():
        if key in _RESERVED:
            raise TrustError(f"annotation {key!r} is vmrun's own", hint="choose another name")
        if not (key + value).isprintable():
            raise TrustError(f"annotation {key[:80]!r} has control characters", hint="remove them")
    size = sum(len((key + value).encode()) for key, value in annotations.items())
    if size > _LARGEST_ANNOTATIONS:
        raise TrustError(
            f"the annotations have {size} bytes, the limit is {_LARGEST_ANNOTATIONS}",
            hint="sign the digest of what is so large",
        )


def parse_payload(data: bytes, where: str) -> Payload:
    """Read a payload strictly. Raises :class:`TrustError`."""
    try:
        document = parse_object(data, where, _LIMITS)
        _exactly(document, {"critical", "optional"}, where)
        critical = document.nested("critical")
        _exactly(critical, {"identity", "image", "type"}, where)
        identity, image = critical.nested("identity"), critical.nested("image")
        _exactly(identity, {"docker-reference"}, where)
        _exactly(image, {"docker-manifest-digest"}, where)
        if critical.text("type") != TYPE:
            raise TrustError(f"{where}: type {critical.text('type')[:80]!r} is not {TYPE!r}")
        optional = document.nested("optional")
        return Payload(
            digest=Digest.parse(image.text("docker-manifest-digest")),
            identity=identity.text("docker-reference"),
            creator=optional.text("creator", ""),
            timestamp=optional.integer("timestamp") if "timestamp" in optional else None,
        )
    except ImageError as error:
        raise TrustError(placed(error.message, where)) from None


def without_time(data: bytes) -> object:
    """All that a payload says but for when. Raises :class:`TrustError`."""
    parse_payload(data, "payload")
    document = json.loads(data)
    (document["optional"] or {}).pop("timestamp", None)
    return document


def placed(message: str, where: str) -> str:
    """A message that names the place, once."""
    return message if message.startswith(where) else f"{where}: {message}"


def _exactly(document: Document, fields: set[str], where: str) -> None:
    there = set(document.names())
    if unknown := sorted(there - fields):
        raise TrustError(f"{where}: unknown field {unknown[0][:80]!r}")
    if missing := sorted(fields - there):
        raise TrustError(f"{where}: without {missing[0]!r}")
