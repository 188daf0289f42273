"""The folder of a catalogue's private keys, and of what was last published with them.

Keys of root and targets are encrypted as those that sign images are; those of snapshot and
timestamp are not, because a timer signs with them. The copies of what was published are the
publisher's own memory: nobody who can write to the published files can make it sign something
older, or something foreign, again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from vmrun.image.durable import replace_file
from vmrun.model.errors import StateError, TrustError
from vmrun.trust.encrypted_key import decrypt, encrypt, is_encrypted
from vmrun.trust.files import read_trusted
from vmrun.trust.tuf_roles import ENCRYPTED, KeyType, Role

_LARGEST_KEY = 64 * 1024
_LARGEST_COPY = 8_000_000
_SHOWN = 16
_Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class KeyFolder:
    """Private keys by role and id. ``passphrase`` is asked when an encrypted key is needed."""

    def __init__(self, directory: Path, passphrase: Callable[[], bytes]) -> None:
        self.directory = directory
        self._passphrase = passphrase

    def make(self) -> None:
        """Make the folder, which must not exist."""
        try:
            self.directory.mkdir(mode=0o700, parents=True)
            (self.directory / "published").mkdir(mode=0o700)
        except OSError as error:
            raise self._unusable(error) from error

    def check(self) -> None:
        """Raises :class:`TrustError` unless the folder exists and is its owner's alone."""
        try:
            status = os.stat(self.directory)
        except OSError as error:
            raise TrustError(
                f"folder of keys {self.directory}: {error.strerror}",
                hint="name it with --keys",
            ) from None
        if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077:
            raise TrustError(
                f"folder of keys {self.directory} is open to others",
                hint=f"chmod 0700 {self.directory}",
            )

    def create(self, role: Role, kind: KeyType) -> CryptoSigner:
        """A new key of ``role``, written down."""
        key: _Private = (
            ed25519.Ed25519PrivateKey.generate()
            if kind is KeyType.ED25519
            else ec.generate_private_key(ec.SECP256R1())
        )
        encrypted = role in ENCRYPTED
        data = key.private_bytes(
            serialization.Encoding.DER if encrypted else serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        signer = CryptoSigner(key)
        if encrypted:
            data = encrypt(data, self._passphrase())
        self._write(self._path(role, signer.public_key.keyid), data)
        return signer

    def signers(self, role: Role, key_ids: Iterable[str]) -> list[CryptoSigner]:
        """Those keys of ``role`` that are here. Raises :class:`TrustError` for one that cannot be
        read or is another than its name says."""
        found = []
        for key_id in key_ids:
            path = self._path(role, key_id)
            pem = read_trusted(path, _LARGEST_KEY, "private key")
            if pem is None:
                continue
            signer = CryptoSigner(self._load(pem, path))
            if signer.public_key.keyid != key_id:
                raise TrustError(
                    f"private key {path} is not the key that its name says",
                    hint="restore it from a backup",
                )
            found.append(signer)
        return found

    def kind(self, role: Role, key_ids: Iterable[str]) -> KeyType:
        """The kind of the keys that are here, for a new one."""
        for signer in self.signers(role, key_ids):
            return KeyType(signer.public_key.keytype)
        return KeyType.ED25519

    def discard(self, role: Role, key_id: str) -> None:
        """Remove a key that no root names any more."""
        try:
            self._path(role, key_id).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def recall(self, role: Role) -> bytes | None:
        """The metadata of ``role`` that was last published from here; None if none was."""
        path = self.directory / "published" / f"{role}.json"
        return read_trusted(path, _LARGEST_COPY, "published copy")

    def remember(self, role: Role, data: bytes) -> None:
        """Keep what was published."""
        self._write(self.directory / "published" / f"{role}.json", data)

    def _load(self, pem: bytes, path: Path) -> _Private:
        try:
            if is_encrypted(pem):
                der = decrypt(pem, self._passphrase(), f"private key {path}")
                key = serialization.load_der_private_key(der, None)
            else:
                key = serialization.load_pem_private_key(pem, None)
        except TrustError as error:
            raise TrustError(
                error.message,
                hint="give the passphrase with --passphrase-file, VMRUN_CATALOGUE_PASSPHRASE, or at"
                " the prompt",
            ) from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise TrustError(
                f"private key {path} is damaged", hint="restore it from a backup"
            ) from None
        if not isinstance(key, _Private):
            raise TrustError(f"private key {path} is neither Ed25519 nor ECDSA", hint="rotate it")
        return key

    def _path(self, role: Role, key_id: str) -> Path:
        return self.directory / f"{role}-{key_id[:_SHOWN]}.pem"

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, data)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StateError:
        return StateError(
            f"cannot use the folder of keys {self.directory}: {error.strerror or error}",
            hint="choose another --keys, or free disk space",
        )
