"""Sigstore bundles, version 0.3 (protobuf-specs, sigstore_bundle.proto), with a public key.

A bundle carries a DSSE envelope and a hint which key made it. Certificates and transparency logs
are not looked at: here the policy names keys.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from vmrun.image.document import parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.errors import ImageError, TrustError
from vmrun.trust.dsse import LARGEST_ENVELOPE, Envelope, check_plain, parse_envelope

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
LARGEST_BUNDLE = LARGEST_ENVELOPE + 64 * 1024
_LIMITS = ImageLimits(document=LARGEST_BUNDLE)


def make_bundle(envelope: Mapping[str, object], key_id: str) -> bytes:
    """A bundle around an envelope; its hint is the key's id as cosign writes it, in base64."""
    hint = base64.b64encode(bytes.fromhex(key_id.removeprefix("sha256:"))).decode()
    return json.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}},
            "dsseEnvelope": envelope,
        },
        separators=(",", ":"),
    ).encode()


def parse_bundle(data: bytes, where: str) -> Envelope:
    """The envelope in a bundle. Raises :class:`TrustError` for other versions and contents."""
    check_plain(data, where)
    try:
        document = parse_object(data, where, _LIMITS)
        if document.text("mediaType") != MEDIA_TYPE:
            raise TrustError(f"{where}: {document.text('mediaType')[:80]!r} is not {MEDIA_TYPE!r}")
        if "dsseEnvelope" not in document:
            raise TrustError(f"{where}: holds no DSSE envelope")
        return parse_envelope(document.nested("dsseEnvelope"))
    except ImageError as error:
        raise TrustError(error.message) from None
