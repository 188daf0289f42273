"""Keys that vouch for images: PKIX public keys, and private keys in cosign's encrypted form.

A key's id is the SHA-256 of its DER SubjectPublicKeyInfo: the same key has the same id in every
file. Signatures are ECDSA with SHA-256 (ASN.1 DER), RSA PKCS #1 v1.5 with SHA-256, or Ed25519:
what cosign makes of these kinds of keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from vmrun.model.errors import TrustError
from vmrun.trust.encrypted_key import decrypt, encrypt

_LARGEST_PEM = 64 * 1024
_SMALLEST_RSA = 2048
_LARGEST_RSA = 8192
_CURVES = ("secp256r1", "secp384r1", "secp521r1")

_Public = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
_Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures; ``where`` is the file or field it is from."""

    key_id: str
    algorithm: str
    pem: bytes
    where: str
    _key: _Public = field(repr=False, compare=False)

    @classmethod
    def load(cls, pem: bytes, where: str) -> PublicKey:
        """Read a PEM ``PUBLIC KEY``; raises :class:`TrustError` for anything else."""
        try:
            if len(pem) > _LARGEST_PEM:
                raise ValueError("too large")
            if pem.count(b"-----BEGIN") > 1:
                raise ValueError("it holds several, of which only one would count")
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise TrustError(
                f"{where}: not a public key in PEM form ({str(error)[:80]})",
                hint="'vmrun key generate' and 'cosign generate-key-pair' write such files",
            ) from None
        if not isinstance(key, _Public):
            raise TrustError(f"{where}: a kind of key that signs no images", hint=_KINDS)
        return cls._of(key, where)

    @classmethod
    def _of(cls, key: _Public, where: str) -> PublicKey:
        algorithm = _algorithm(key)
        if algorithm is None:
            raise TrustError(f"{where}: a key of this kind or size is not accepted", hint=_KINDS)
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        text = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        key_id = f"sha256:{hashlib.sha256(der).hexdigest()}"
        return cls(key_id, algorithm, text, where, key)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` is this key's signature of ``data``."""
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                self._key.verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


_KINDS = f"use ECDSA P-256, P-384 or P-521, Ed25519, or RSA of {_SMALLEST_RSA} bits and more"


def _algorithm(key: _Public) -> str | None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}" if key.curve.name in _CURVES else None
    if isinstance(key, rsa.RSAPublicKey):
        fits = _SMALLEST_RSA <= key.key_size <= _LARGEST_RSA
        return f"RSA {key.key_size}" if fits else None
    return "Ed25519"


class PrivateKey:
    """A key that signs. It is in memory in the clear; nothing prints it."""

    def __init__(self, key: _Private, where: str) -> None:
        self._key = key
        self.public = PublicKey._of(key.public_key(), where)

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new ECDSA P-256 key."""
        return cls(ec.generate_private_key(ec.SECP256R1()), "new key")

    @classmethod
    def load(cls, pem: bytes, passphrase: bytes, where: str) -> PrivateKey:
        """Read cosign's encrypted PEM. Raises :class:`TrustError` for another file, a wrong
        passphrase, and a kind of key that :class:`PublicKey` does not accept."""
        der = decrypt(pem, passphrase, where)
        try:
            key = serialization.load_der_private_key(der, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise TrustError(
                f"{where}: holds no private key in PKCS #8 form", hint="the key file is damaged"
            ) from None
        if not isinstance(key, _Private):
            raise TrustError(f"{where}: a kind of key that signs no images", hint=_KINDS)
        return cls(key, where)

    def encrypted_pem(self, passphrase: bytes) -> bytes:
        """The key in cosign's encrypted PEM."""
        der = self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return encrypt(der, passphrase)

    def sign(self, data: bytes) -> bytes:
        """A signature of ``data`` as :meth:`PublicKey.verify` expects it."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(data, ec.ECDSA(hashes.SHA256()))
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data)
