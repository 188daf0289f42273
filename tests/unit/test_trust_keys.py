"""Keys: which count, cosign's encrypted file, and ``vmrun key``."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Result
from vmrun.model.errors import TrustError
from vmrun.trust import encrypted_key
from vmrun.trust.keys import PrivateKey, PublicKey

RSA = rsa.generate_private_key(65537, 2048)
KINDS: dict[str, Any] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": RSA,
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
WEAK: dict[str, Any] = {
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "P-224": ec.generate_private_key(ec.SECP224R1()),
    "RSA-1024": rsa.generate_private_key(65537, 1024),
    "X25519": x25519.X25519PrivateKey.generate(),
}


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_is_good_for_its_key_and_its_data_only(kind: str) -> None:
    key = PrivateKey(KINDS[kind], kind)
    loaded = PublicKey.load(public_pem(KINDS[kind]), kind)
    signature = key.sign(b"data")
    assert loaded.verify(signature, b"data")
    assert not loaded.verify(signature, b"other data")
    for damaged in (b"", signature[:-1], signature + b"\0", b"\0" * len(signature)):
        assert not loaded.verify(damaged, b"data")
    for other in KINDS:
        if other != kind:
            assert not PublicKey.load(public_pem(KINDS[other]), other).verify(signature, b"data")


@pytest.mark.parametrize("kind", KINDS)
def test_the_id_is_the_digest_of_what_openssl_writes(kind: str) -> None:
    pem = public_pem(KINDS[kind])
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=pem, capture_output=True, check=True
    ).stdout
    key = PublicKey.load(b"# a comment of somebody's\n" + pem, kind)
    assert key.key_id == f"sha256:{hashlib.sha256(der).hexdigest()}"
    assert PublicKey.load(key.pem, "again").key_id == key.key_id


@pytest.mark.parametrize("kind", WEAK)
def test_weak_and_foreign_kinds_of_keys_do_not_count(kind: str) -> None:
    with pytest.raises(TrustError, match="here: "):
        PublicKey.load(public_pem(WEAK[kind]), "here")
    der = WEAK[kind].private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(TrustError, match="here: "):
        PrivateKey.load(encrypted_key.encrypt(der, b"x"), b"x", "here")


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"hello",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        public_pem(KINDS["P-256"]) + public_pem(KINDS["P-384"]),
        public_pem(KINDS["P-256"]) + b"\n" * (64 * 1024),
        PrivateKey.generate().encrypted_pem(b"x"),
    ],
    ids=["empty", "text", "no key", "two keys", "too large", "private"],
)
def test_what_is_no_public_key_is_refused_with_its_place(pem: bytes) -> None:
    with pytest.raises(TrustError, match=r"site\.pub: not a public key"):
        PublicKey.load(pem, "site.pub")


# --- the encrypted file ----------------------------------------------------------------------


def document(pem: bytes) -> dict[str, Any]:
    body = b"".join(pem.splitlines()[1:-1])
    fields: dict[str, Any] = json.loads(base64.b64decode(body))
    return fields


def pem_of(fields: object, label: str = "ENCRYPTED SIGSTORE PRIVATE KEY") -> bytes:
    body = base64.encodebytes(json.dumps(fields).encode()).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


ENCRYPTED = PrivateKey(KINDS["P-256"], "key").encrypted_pem(b"secret")


@pytest.mark.parametrize("passphrase", [b"", "pässwörd\n".encode(), b"\xff" * 200])
def test_only_the_passphrase_opens_the_file(passphrase: bytes) -> None:
    key = PrivateKey.generate()
    pem = key.encrypted_pem(passphrase)
    assert PrivateKey.load(pem, passphrase, "key").public.key_id == key.public.key_id
    with pytest.raises(TrustError, match="wrong passphrase"):
        PrivateKey.load(pem, passphrase + b"x", "key")


def test_the_file_is_as_cosign_writes_it() -> None:
    fields = document(ENCRYPTED)
    assert fields["kdf"]["name"] == "scrypt"
    assert fields["kdf"]["params"] == {"N": 65536, "r": 8, "p": 1}
    assert fields["cipher"]["name"] == "nacl/secretbox"
    assert encrypted_key.is_encrypted(ENCRYPTED)
    assert not encrypted_key.is_encrypted(public_pem(KINDS["P-256"]))


def test_the_label_of_old_cosigns_is_read_too() -> None:
    pem = pem_of(document(ENCRYPTED), "ENCRYPTED COSIGN PRIVATE KEY")
    assert encrypted_key.is_encrypted(pem)
    PrivateKey.load(pem, b"secret", "key")


def test_two_files_of_one_key_share_no_salt_nor_nonce() -> None:
    one, other = document(ENCRYPTED), document(PrivateKey.generate().encrypted_pem(b"secret"))
    assert one["kdf"]["salt"] != other["kdf"]["salt"]
    assert one["cipher"]["nonce"] != other["cipher"]["nonce"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("kdf", "params", "N"), 1 << 30),
        (("kdf", "params", "N"), 65535),
        (("kdf", "params", "N"), 0),
        (("kdf", "params", "N"), "65536"),
        (("kdf", "params", "r"), 1 << 20),
        (("kdf", "params", "p"), 1 << 20),
        (("kdf", "name"), "none"),
        (("kdf", "salt"), "!"),
        (("kdf",), None),
        (("cipher", "name"), "rot13"),
        (("cipher", "nonce"), "AAAA"),
        (("cipher", "nonce"), ""),
        (("ciphertext",), ""),
        (("ciphertext",), "AAAA"),
        (("ciphertext",), 7),
    ],
)
def test_a_damaged_file_is_an_error_and_costs_no_memory(
    place: tuple[str, ...], value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    derive = hashlib.scrypt

    def bounded(*arguments: Any, n: int, r: int, p: int, **more: Any) -> bytes:
        assert 128 * n * r * p <= 128 << 20
        return derive(*arguments, n=n, r=r, p=p, **more)

    monkeypatch.setattr(hashlib, "scrypt", bounded)
    fields = document(ENCRYPTED)
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(TrustError, match=r"^mine\.key"):
        PrivateKey.load(pem_of(fields), b"secret", "mine.key")


def test_what_is_inside_must_be_a_key() -> None:
    with pytest.raises(TrustError, match="holds no private key"):
        PrivateKey.load(encrypted_key.encrypt(b"not DER", b"x"), b"x", "key")


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_no_bytes_are_more_than_an_error(data: bytes) -> None:
    with pytest.raises(TrustError):
        PublicKey.load(data, "key")
    with pytest.raises(TrustError):
        PrivateKey.load(data, b"secret", "key")
    with pytest.raises(TrustError):
        PublicKey.load(b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(data), "key")
    body = base64.encodebytes(data).decode()
    label = "ENCRYPTED SIGSTORE PRIVATE KEY"
    pem = f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()
    with pytest.raises(TrustError):
        PrivateKey.load(pem, b"secret", "key")


# --- vmrun key -------------------------------------------------------------------------------

Vmrun = Callable[..., Result]
SECRET = {**os.environ, "VMRUN_KEY_PASSWORD": "secret"}


def test_generate_writes_a_pair_that_only_the_owner_reads(vmrun: Vmrun, tmp_path: Path) -> None:
    done = vmrun("key", "generate", "--out", str(tmp_path / "site"), env=SECRET)
    assert done.status == 0, done.err
    private, public = tmp_path / "site.key", tmp_path / "site.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = PrivateKey.load(private.read_bytes(), b"secret", "key")
    assert done.out.split() == [key.public.key_id]
    assert public.read_bytes() == key.public.pem
    before = private.read_bytes()
    again = vmrun("key", "generate", "--out", str(tmp_path / "site"), env=SECRET)
    assert again.status == 2
    assert "exists" in again.err
    assert private.read_bytes() == before
    for file in (private, public):
        shown = json.loads(vmrun("key", "show", "--json", str(file), env=SECRET).out)
        assert shown["key_id"] == key.public.key_id
        assert shown["algorithm"] == "ECDSA secp256r1"
        assert shown["private"] == (file == private)


def test_generate_does_not_follow_a_link(vmrun: Vmrun, tmp_path: Path) -> None:
    (tmp_path / "k.key").symlink_to(tmp_path / "elsewhere")
    assert vmrun("key", "generate", "--out", str(tmp_path / "k"), env=SECRET).status == 2
    assert not (tmp_path / "elsewhere").exists()


def test_where_a_passphrase_comes_from(vmrun: Vmrun, tmp_path: Path) -> None:
    bare = {k: v for k, v in os.environ.items() if not k.endswith("_PASSWORD")}
    pair = str(tmp_path / "k")
    none = vmrun("key", "generate", "--out", pair, env=bare)
    assert none.status == 2
    assert "no terminal" in none.err
    assert not list(tmp_path.glob("k.*"))
    (tmp_path / "pass").write_text("from the file\nnot this line\n")
    made = vmrun(
        "key", "generate", "--out", pair, "--passphrase-file", str(tmp_path / "pass"), env=SECRET
    )
    assert made.status == 0, made.err
    for variable in ("VMRUN_KEY_PASSWORD", "COSIGN_PASSWORD"):
        shown = vmrun("key", "show", f"{pair}.key", env={**bare, variable: "from the file"})
        assert shown.out.split()[0] == made.out.strip()
    wrong = vmrun("key", "show", f"{pair}.key", env=SECRET)
    assert wrong.status == 1
    assert "wrong passphrase" in wrong.err


@pytest.mark.parametrize("content", [None, b"", b"no key at all"])
def test_show_says_what_is_wrong(vmrun: Vmrun, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "k.pub").write_bytes(content)
    shown = vmrun("key", "show", str(tmp_path / "k.pub"))
    assert shown.status in (1, 2)
    assert "k.pub" in shown.err
    assert "Traceback" not in shown.err
