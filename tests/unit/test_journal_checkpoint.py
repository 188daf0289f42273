"""Checkpoints: what a key has signed of the journal is there, as it was, or that is said."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_audit import call
from tests.unit.test_state import directories
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError, TrustError, UsageError
from vmrun.run.directories import StateDirectories
from vmrun.trust.checkpoint import (
    LARGEST,
    PAYLOAD_TYPE,
    Checkpoint,
    read_checkpoint,
    sign_checkpoint,
)
from vmrun.trust.dsse import pre_authentication_encoding, sign_envelope
from vmrun.trust.keys import PrivateKey

__all__ = ["call", "directories"]

KEY, OTHER = PrivateKey.generate(), PrivateKey.generate()
POINT = Checkpoint(3, "ab" * 32, "2026-05-01T12:00:00Z", "build.example.com", "root (0)")
Call = Callable[..., str]


# --- the envelope --------------------------------------------------------------------------------


def test_what_is_signed_is_read() -> None:
    assert read_checkpoint(sign_checkpoint(POINT, KEY), "f", KEY.public) == POINT


def test_its_form() -> None:
    envelope = json.loads(sign_checkpoint(POINT, KEY))
    assert envelope.keys() == {"payloadType", "payload", "signatures"}
    assert envelope["payloadType"] == PAYLOAD_TYPE
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload) == {
        "version": 1,
        "seq": 3,
        "hash": "ab" * 32,
        "time": "2026-05-01T12:00:00Z",
        "host": "build.example.com",
        "user": "root (0)",
    }
    (signature,) = envelope["signatures"]
    signed = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    assert KEY.public.verify(base64.b64decode(signature["sig"]), signed)


def test_openssl_agrees(tmp_path: Path) -> None:
    """Another implementation of ECDSA over the bytes that DSSE says."""
    envelope = json.loads(sign_checkpoint(POINT, KEY))
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "pub").write_bytes(KEY.public.pem)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    head = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode()
    (tmp_path / "data").write_bytes(head + payload)
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", "pub", "-signature", "sig", "data"],
        cwd=tmp_path,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.strip() == b"Verified OK", done.stderr


def test_another_key_did_not_sign_it() -> None:
    with pytest.raises(TrustError, match="not signed with key") as caught:
        read_checkpoint(sign_checkpoint(POINT, OTHER), "f", KEY.public)
    assert KEY.public.key_id in caught.value.message


def test_no_changed_byte_is_overlooked() -> None:
    whole = sign_checkpoint(POINT, KEY)
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :]
        try:
            # White space between values, and bits that base64 ignores, say the same.
            assert read_checkpoint(changed, "f", KEY.public) == POINT
        except TrustError:
            continue
        assert changed != whole


def enveloped(payload: bytes, kind: str = PAYLOAD_TYPE, key: PrivateKey = KEY) -> bytes:
    return json.dumps(sign_envelope(payload, key, kind)).encode()


def said(**more: Any) -> bytes:
    fields: dict[str, Any] = {
        "version": 1, "seq": 3, "hash": "ab" * 32, "time": "2026-05-01T12:00:00Z",
        "host": "h", "user": "u",
    }  # fmt: skip
    return json.dumps({k: v for k, v in (fields | more).items() if v is not ...}).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 5000,
        said(version=2),
        said(version=True),
        said(version="1"),
        said(seq=0),
        said(seq=-1),
        said(seq=1.0),
        said(seq=True),
        said(seq="3"),
        said(seq=10**12),
        said(seq=...),
        said(hash="AB" * 32),
        said(hash="ab" * 31),
        said(hash="ab" * 32 + "\n"),
        said(hash=None),
        said(time="yesterday"),
        said(time="2026-05-01T12:00:00+02:00"),
        said(time="2026-05-01T12:00:00Z\n"),
        said(time=0),
        said(host=""),
        said(host="a\nb"),
        said(host="\x1b[2J"),
        said(host="h" * 256),
        said(user=None),
        said(user=["u"]),
        said(more="x"),
        said()[:-1] + b',"seq":4}',
    ],
)
def test_what_says_something_else_is_no_checkpoint(payload: bytes) -> None:
    """Signed with the right key, and still not what could be held against a journal."""
    with pytest.raises(TrustError):
        read_checkpoint(enveloped(payload), "f", KEY.public)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[1]",
        b"x" * (LARGEST + 1),
        b"[" * 60000,
        b"," * 60000,
        enveloped(said(), "application/vnd.in-toto+json"),
        enveloped(said(), PAYLOAD_TYPE.upper()),
        json.dumps({"payloadType": PAYLOAD_TYPE, "payload": "e30=", "signatures": []}).encode(),
        json.dumps({"payloadType": PAYLOAD_TYPE, "payload": "?", "signatures": []}).encode(),
        json.dumps(
            {"payloadType": PAYLOAD_TYPE, "payload": "e30=", "signatures": [{"sig": ""}] * 17}
        ).encode(),
        enveloped(said())[:-1] + b', "payload": "e30="}',
    ],
)
def test_what_is_no_envelope_of_a_checkpoint(data: bytes) -> None:
    with pytest.raises(TrustError):
        read_checkpoint(data, "f", KEY.public)


def test_a_signature_of_something_else_cannot_be_passed_off() -> None:
    """The type is signed, too: an attestation of the same bytes is none."""
    envelope = sign_envelope(said(), KEY)
    envelope["payloadType"] = PAYLOAD_TYPE
    with pytest.raises(TrustError, match="not signed"):
        read_checkpoint(json.dumps(envelope).encode(), "f", KEY.public)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_checkpoint(data: bytes) -> None:
    with pytest.raises(TrustError):
        read_checkpoint(data, "f", KEY.public)


@pytest.mark.parametrize("host", ["", "a\nb", "h" * 300])
def test_nobody_signs_what_cannot_be_read(host: str) -> None:
    point = Checkpoint(3, "ab" * 32, "2026-05-01T12:00:00Z", host, "u")
    with pytest.raises(TrustError):
        sign_checkpoint(point, KEY)


# --- the commands --------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMRUN_KEY_PASSWORD", "x")
    path = tmp_path / "audit.key"
    path.write_bytes(KEY.encrypted_pem(b"x"))
    path.with_suffix(".pub").write_bytes(KEY.public.pem)
    return path


@pytest.fixture
def journal(directories: StateDirectories) -> Journal:
    made = Journal(directories.journal, segment=1500)
    for at in range(5):
        made.append("run.start", {"run": f"{at:012}", "reference": f"registry.example.com/a:{at}"})
    return made


@pytest.fixture
def point(call: Call, journal: Journal, key: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.json"
    call("audit", "checkpoint", "--key", str(key), "--output", str(path))
    return path


def verify(call: Call, key: Path, *points: Path) -> str:
    words = [word for point in points for word in ("--checkpoint", str(point))]
    return call("audit", "verify", *words, "--key", str(key.with_suffix(".pub")))


def test_a_checkpoint_holds_while_the_journal_grows(
    call: Call, journal: Journal, key: Path, point: Path
) -> None:
    verify(call, key, point)
    for _ in range(30):
        journal.append("run.end", {"run": "0" * 12, "error": "x" * 100})
    assert list(journal.path.parent.glob("journal-*.jsonl"))
    assert verify(call, key, point).strip() == str(journal.verify())
    assert "is there as" in call.err  # type: ignore[attr-defined]


def test_it_signs_the_entry_that_says_so(
    call: Call, journal: Journal, key: Path, point: Path
) -> None:
    last = list(journal.entries())[-1]
    assert (last.event, last.fields["key"]) == ("audit.checkpoint", KEY.public.key_id)
    read = read_checkpoint(point.read_bytes(), "f", KEY.public)
    assert (read.seq, read.hash) == (last.seq, journal.verify().hash)
    assert read.host
    assert f"({os.getuid()})" in read.user


def test_to_stdout_and_as_json(call: Call, journal: Journal, key: Path, tmp_path: Path) -> None:
    out = call("audit", "checkpoint", "--key", str(key))
    path = tmp_path / "stdout.json"
    path.write_text(out)
    shown = json.loads(
        call("audit", "checkpoint", "--key", str(key), "--output", str(tmp_path / "b"), "--json")
    )
    assert shown["key"] == KEY.public.key_id
    assert shown.keys() == {*Checkpoint.__dataclass_fields__, "key", "file"}
    words = ["--checkpoint", str(path), "--checkpoint", str(tmp_path / "b")]
    found = json.loads(
        call("audit", "verify", *words, "--key", str(key.with_suffix(".pub")), "--json")
    )
    assert [one["seq"] for one in found["checkpoints"]] == [shown["seq"] - 1, shown["seq"]]
    assert found["seq"] == shown["seq"]


def rewritten(journal: Journal) -> None:
    """All of it anew, with valid chains: only what is kept elsewhere shows that."""
    old = list(journal.entries())
    shutil.rmtree(journal.path.parent)
    for entry in old:
        journal.append(entry.event, {**entry.fields, "run": "f" * 12})


def shortened(journal: Journal) -> None:
    """Its end cut off, and the chain continued."""
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:-2]))


def replaced(journal: Journal) -> None:
    shortened(journal)
    for _ in range(5):
        journal.append("run.start", {"run": "0" * 12})


def reordered(journal: Journal) -> None:
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join([*lines[:-2], lines[-1], lines[-2]]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (rewritten, "is not the expected one"),
        (shortened, "was cut off"),
        (replaced, "is not the expected one"),
        (reordered, r"follows entry|chain is broken"),
        (lambda journal: journal.path.unlink(), r"was cut off|follows entry"),
        (lambda journal: shutil.rmtree(journal.path.parent), "was cut off"),
    ],
)
def test_what_was_done_to_the_journal_is_found(
    call: Call,
    journal: Journal,
    key: Path,
    point: Path,
    change: Callable[[Journal], None],
    why: str,
) -> None:
    change(journal)
    with pytest.raises(StateError, match=why):
        verify(call, key, point)


def test_a_checkpoint_of_another_key_proves_nothing(
    call: Call, key: Path, point: Path, tmp_path: Path
) -> None:
    pub = tmp_path / "other.pub"
    pub.write_bytes(OTHER.public.pem)
    with pytest.raises(TrustError, match="not signed with key"):
        call("audit", "verify", "--checkpoint", str(point), "--key", str(pub))


@pytest.mark.parametrize("words", [["--checkpoint", "x"], ["--key", "x"]])
def test_a_key_and_a_checkpoint_go_together(call: Call, journal: Journal, words: list[str]) -> None:
    with pytest.raises(UsageError, match="go together"):
        call("audit", "verify", *words)


@pytest.mark.parametrize("what", ["absent", "directory"])
def test_a_checkpoint_that_cannot_be_read(
    call: Call, journal: Journal, key: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / what
    if what == "directory":
        path.mkdir()
    with pytest.raises(TrustError, match="cannot read checkpoint"):
        verify(call, key, path)


def test_an_old_checkpoint_is_not_replaced(
    call: Call, journal: Journal, key: Path, point: Path
) -> None:
    before, seq = point.read_bytes(), journal.verify().seq
    with pytest.raises(StateError, match="exists"):
        call("audit", "checkpoint", "--key", str(key), "--output", str(point))
    assert point.read_bytes() == before
    assert journal.verify().seq == seq


def test_no_checkpoint_of_a_broken_journal(
    call: Call, journal: Journal, key: Path, tmp_path: Path
) -> None:
    journal.path.write_bytes(journal.path.read_bytes().replace(b"com/a:3", b"com/a:9"))
    before = journal.path.read_bytes()
    with pytest.raises(StateError, match="chain is broken"):
        call("audit", "checkpoint", "--key", str(key), "--output", str(tmp_path / "c"))
    assert journal.path.read_bytes() == before
    assert not (tmp_path / "c").exists()


def test_where_nothing_can_be_written(
    call: Call, journal: Journal, key: Path, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match="cannot write"):
        call("audit", "checkpoint", "--key", str(key), "--output", str(tmp_path / "a" / "b"))
