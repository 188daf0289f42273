"""cosign's file for a private key: PEM around JSON that names scrypt and nacl/secretbox.

The JSON is that of secure-systems-lab's ``encrypted`` package. Its cost parameters come from the
file, so they are bounded before any memory is spent on them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.errors import ImageError, TrustError

_LABEL = "ENCRYPTED SIGSTORE PRIVATE KEY"
_LABELS = (_LABEL, "ENCRYPTED COSIGN PRIVATE KEY")
_PEM = re.compile(
    rb"-----BEGIN (?P<label>[A-Z ]+)-----\s(?P<body>[A-Za-z0-9+/=\s]+)-----END (?P=label)-----\s*"
)
_N, _R, _P = 65536, 8, 1
_LARGEST_N = 1 << 17  # 128 MiB; cosign 2.5 writes 65536, older ones 32768
_MEMORY = 128 * _R * _LARGEST_N + (32 << 20)
_LARGEST_FILE = 64 * 1024
_LIMITS = ImageLimits(document=_LARGEST_FILE)


def encrypt(secret: bytes, passphrase: bytes) -> bytes:
    """``secret`` in a PEM block that only ``passphrase`` opens."""
    salt, nonce = os.urandom(32), os.urandom(SecretBox.NONCE_SIZE)
    box = SecretBox(_derive(passphrase, salt, _N, _R, _P))
    document = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": _N, "r": _R, "p": _P},
            "salt": base64.b64encode(salt).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box.encrypt(secret, nonce).ciphertext).decode(),
    }
    body = base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join((f"-----BEGIN {_LABEL}-----", *lines, f"-----END {_LABEL}-----", "")).encode()


def is_encrypted(pem: bytes) -> bool:
    """Whether this looks like such a block."""
    match = _PEM.search(pem[:_LARGEST_FILE])
    return match is not None and match["label"].decode() in _LABELS


def decrypt(pem: bytes, passphrase: bytes, where: str) -> bytes:
    """What :func:`encrypt`, or cosign, has put into ``pem``. Raises :class:`TrustError`."""
    match = _PEM.search(pem[:_LARGEST_FILE])
    if match is None or match["label"].decode() not in _LABELS:
        raise TrustError(
            f"{where}: not a private key in cosign's encrypted form",
            hint="'vmrun key generate' and 'cosign generate-key-pair' write such files",
        )
    try:
        document = parse_object(_bytes(match["body"], where), where, _LIMITS)
        kdf, cipher = document.nested("kdf"), document.nested("cipher")
        if (kdf.text("name"), cipher.text("name")) != ("scrypt", "nacl/secretbox"):
            raise TrustError(f"{where}: unknown way to encrypt a key", hint="make the key anew")
        cost = kdf.nested("params")
        key = _checked_cost(passphrase, kdf, cost, where)
        nonce = _bytes(cipher.text("nonce").encode(), where)
        sealed = _bytes(document.text("ciphertext").encode(), where)
    except ImageError as error:
        raise TrustError(error.message, hint="the key file is damaged") from None
    if len(nonce) != SecretBox.NONCE_SIZE:
        raise TrustError(f"{where}: the nonce has a wrong size", hint="the key file is damaged")
    try:
        return SecretBox(key).decrypt(sealed, nonce)
    except CryptoError:
        raise TrustError(
            f"{where}: wrong passphrase, or a damaged file",
            hint="give the passphrase with --passphrase-file, COSIGN_PASSWORD, or at the prompt",
        ) from None


def _checked_cost(passphrase: bytes, kdf: Document, cost: Document, where: str) -> bytes:
    n, r, p = cost.integer("N"), cost.integer("r"), cost.integer("p")
    if not (2 <= n <= _LARGEST_N and n & (n - 1) == 0 and r == _R and p == _P):
        raise TrustError(
            f"{where}: scrypt with N={n}, r={r}, p={p} is not accepted",
            hint=f"cosign uses r={_R}, p={_P} and N of at most {_LARGEST_N}",
        )
    return _derive(passphrase, _bytes(kdf.text("salt").encode(), where), n, r, p)


def _derive(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        passphrase, salt=salt, n=n, r=r, p=p, maxmem=_MEMORY, dklen=SecretBox.KEY_SIZE
    )


def _bytes(text: bytes, where: str) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise TrustError(f"{where}: not base64", hint="the key file is damaged") from None
