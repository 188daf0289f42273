"""``vmrun policy`` and ``vmrun image verify``, from the first policy to the first refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.images import file, plain_image
from tests.images import image as make_image
from vmrun.cli.main import main
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.model.digest import Digest
from vmrun.model.errors import SettingsError, UsageError
from vmrun.model.image import Descriptor
from vmrun.policy.edit import FIRST_POLICY, allow
from vmrun.policy.signature_policy import parse_policy
from vmrun.trust.keys import PrivateKey
from vmrun.trust.ledger import Ledger, LedgerEntry
from vmrun.trust.signing import sign_image

NAME = "registry.example.com/prod/app:1"
ALICE, MALLORY = PrivateKey.generate(), PrivateKey.generate()
ANYTHING = '{"default": [{"type": "insecureAcceptAnything"}]}'


@dataclass
class Host:
    """A host of its own: its site's files, a user's, and state."""

    root: Path
    run: Callable[..., tuple[int, str, str]]

    def __post_init__(self) -> None:
        self.site, self.user = self.root / "site", self.root / "config" / "vmrun"
        self.policy, self.rules = self.user / "policy.json", self.user / "trust.toml"
        self.ledger = Ledger(self.root / "state" / "ledger")
        self.alice, self.mallory = self.root / "alice.pub", self.root / "mallory.pub"
        self.alice.write_bytes(ALICE.public.pem)
        self.mallory.write_bytes(MALLORY.public.pem)

    def ok(self, *words: object) -> str:
        status, out, err = self.run(*words)
        assert status == 0, err
        return out

    def fails(self, *words: object) -> str:
        status, out, err = self.run(*words)
        assert (status, out) == (1, ""), (status, out)
        assert "hint: " in err
        return err

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Host:
    monkeypatch.setattr("vmrun.settings.SITE_FILE", tmp_path / "site" / "config.toml")
    monkeypatch.delenv("VMRUN_POLICY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VMRUN_STATE_DIR", str(tmp_path / "state"))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmrun", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err

    return Host(tmp_path, run)


def signed_layout(directory: Path, *keys: PrivateKey, name: str = NAME, at: float = 1e9) -> str:
    built = plain_image()
    built.write_layout(directory)
    entry = built.index_entry()
    manifest = Descriptor(entry["mediaType"], Digest.parse(entry["digest"]), entry["size"])
    for key in keys:
        sign_image(LayoutArtifacts(directory), manifest, name, key, now=at)
    return f"oci:{directory}:demo"


# --- vmrun policy ----------------------------------------------------------------------------


def test_init_writes_files_that_reject_everything_and_keeps_what_is_there(host: Host) -> None:
    assert host.ok("policy", "init").split() == [str(host.policy), str(host.rules)]
    assert host.policy.stat().st_mode & 0o777 == 0o644
    assert parse_policy(host.policy.read_bytes(), "x").transports == {}
    host.ok("policy", "check")
    host.write(host.policy, ANYTHING)
    assert host.ok("policy", "init") == ""
    assert host.policy.read_text() == ANYTHING
    assert json.loads(host.ok("policy", "init", "--json")) == {"written": []}


def test_init_does_not_write_through_a_link(host: Host) -> None:
    host.user.mkdir(parents=True)
    host.policy.symlink_to(host.root / "elsewhere")
    host.ok("policy", "init")
    assert not (host.root / "elsewhere").exists()


def test_allow_makes_the_first_policy(host: Host) -> None:
    host.ok("policy", "allow", "registry.example.com/prod", "--key", host.alice)
    document = json.loads(host.policy.read_text())
    assert document["default"] == [{"type": "reject"}]
    [requirement] = document["transports"]["docker"]["registry.example.com/prod"]
    assert requirement.keys() == {"type", "keyData"}
    shown = host.ok("policy", "show", NAME)
    assert ALICE.public.key_id in shown
    assert "docker: registry.example.com/prod" in shown
    assert str(host.policy) in shown
    assert "reject" in host.ok("policy", "show", "registry.example.com/test/app:1")


def test_allow_adds_to_what_is_there(host: Host) -> None:
    keys = ["--key", host.alice, "--key", host.mallory]
    host.ok("policy", "allow", "a.example.com", "--key", host.alice)
    said = json.loads(host.ok("policy", "allow", "b.example.com", *keys, "--json"))
    assert said["keys"] == [ALICE.public.key_id, MALLORY.public.key_id]
    scopes = json.loads(host.policy.read_text())["transports"]["docker"]
    assert scopes.keys() == {"a.example.com", "b.example.com"}
    assert len(scopes["b.example.com"][0]["keyDatas"]) == 2


def test_allow_takes_a_relative_path_with_links_for_what_it_is(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.root / "images").mkdir()
    (host.root / "link").symlink_to("images")
    monkeypatch.chdir(host.root)
    repository = ["--identity-repository", "registry.example.com/prod/app"]
    host.ok("policy", "allow", "link", "--transport", "oci", "--key", host.alice, *repository)
    scopes = json.loads(host.policy.read_text())["transports"]["oci"]
    assert scopes.keys() == {str((host.root / "images").resolve())}


@pytest.mark.parametrize(
    "words",
    [
        ("registry.example.com/prod/",),
        ("busybox",),
        ("Registry.example.com",),
        ("/srv/images", "--transport", "oci"),
        ("/srv/images", "--transport", "oci-archive", "--identity-repository", "a.b/c"),
        ("", "--transport", "docker-archive", "--identity-repository", "a.b/c"),
        ("a.b/c", "--transport", "docker-daemon", "--identity-repository", "a.b/c"),
        ("a.b", "--identity-repository", "a.b/c:1"),
        ("a.b", "--identity-reference", "a.b/c"),
        ("a.b", "--identity-repository", "a.b/c", "--identity-reference", "a.b/c:1"),
    ],
)
def test_allow_refuses_what_could_never_be_satisfied(words: tuple[str, ...], host: Host) -> None:
    status, out, err = host.run("policy", "allow", *words, "--key", host.alice)
    assert (status, out) == (2, "")
    assert "vmrun: " in err
    assert not host.policy.exists()


def test_allow_does_not_weaken_a_scope(host: Host) -> None:
    host.ok("policy", "allow", "a.example.com", "--key", host.alice)
    before = host.policy.read_bytes()
    status, _, err = host.run("policy", "allow", "a.example.com", "--key", host.mallory)
    assert status == 2
    assert "already" in err
    assert host.policy.read_bytes() == before


def test_allow_leaves_a_bad_policy_alone(host: Host) -> None:
    host.write(host.policy, '{"default": []}')
    host.fails("policy", "allow", "a.example.com", "--key", host.alice)
    assert host.policy.read_text() == '{"default": []}'


def test_what_allow_adds_can_always_be_read() -> None:
    """For two at once the folder is locked, so this is about the document alone."""
    document = FIRST_POLICY
    for number in range(20):
        document = allow(document, "x", transport="docker", scope=f"h{number}.example.com",
                         keys=[b"PEM"])  # fmt: skip
    assert len(parse_policy(document, "x").transports["docker"]) == 20
    with pytest.raises(SettingsError):
        allow(b"{}", "x", transport="docker", scope="a.b", keys=[b"PEM"])
    with pytest.raises(UsageError):
        allow(FIRST_POLICY, "x", transport="nonsense", scope="a.b", keys=[b"PEM"])


def test_two_that_allow_at_once_lose_nothing(host: Host, vmrun_program: list[str]) -> None:
    def call(number: int) -> None:
        words = ["policy", "allow", f"h{number}.example.com", "--key", str(host.alice)]
        subprocess.run([*vmrun_program, *words], check=True, capture_output=True, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(6)))
    assert len(json.loads(host.policy.read_text())["transports"]["docker"]) == 6


def test_check_finds_every_kind_of_damage(host: Host) -> None:
    assert "built in" in host.ok("policy", "check")
    host.ok("policy", "init")
    said = json.loads(host.ok("policy", "check", "--json"))
    assert [item["file"] for item in said] == [str(host.policy), str(host.rules)]
    for path, text in (
        (host.site / "policy.json", "{}"),
        (host.site / "trust.toml", "version = 2"),
        (host.policy, '{"default": [{"type": "sigstoreSigned", "keyPath": "/nowhere.pub"}]}'),
        (host.policy, '{"default": [{"type": "sigstoreSigned", "keyData": "UEVN"}]}'),
    ):
        before = path.read_text() if path.exists() else None
        host.write(path, text)
        assert host.fails("policy", "check")
        path.unlink() if before is None else path.write_text(before)
    host.ledger.advance(LedgerEntry(NAME, Digest.of(b"x"), 1.0))
    next((host.root / "state" / "ledger").glob("*.json")).write_text("")
    assert "damaged" in host.fails("policy", "check")


def test_accepting_anything_is_shown_loudly(host: Host) -> None:
    host.write(host.policy, ANYTHING)
    for words in (("check",), ("show",), ("show", NAME), ("show", "--json")):
        _, _, err = host.run("policy", *words)
        assert "WARNING" in err
        assert str(host.policy) in err
    assert "nothing is verified" in host.ok("policy", "show")
    host.ok("policy", "allow", "registry.example.com", "--key", host.alice)
    _, _, err = host.run("policy", "show", NAME)
    assert "WARNING" not in err


def test_show_tells_what_rules_say(host: Host) -> None:
    key = ALICE.public.key_id
    host.write(
        host.rules,
        f"""version = 1
[[revoked.keys]]
id = "{MALLORY.public.key_id}"
reason = "stolen"
[[keys]]
id = "{key}"
name = "release"
not_after = 2027-01-01T00:00:00Z
[[threshold]]
scope = "registry.example.com"
signatures = 2
[scan]
max_severity = "low"
""",
    )
    shown = host.ok("policy", "show")
    for part in (
        f"revoked key {MALLORY.public.key_id}: stolen",
        f"key {key} (release) counts until 2027-01-01T00:00:00Z",
        "2 keys must agree below registry.example.com",
        "nothing above low",
        "older than one accepted before: refuse",
        "built in",
    ):
        assert part in shown
    document = json.loads(host.ok("policy", "show", "--json"))
    assert document["layers"][0]["rules"]["thresholds"][0]["signatures"] == 2


def test_the_ledger_is_shown_and_a_name_forgotten(host: Host) -> None:
    for name in (NAME, "registry.example.com/other:1"):
        host.ledger.advance(LedgerEntry(name, Digest.of(b"x"), 1e9))
    shown = host.ok("policy", "show")
    assert f"ledger: {NAME} {Digest.of(b'x')} signed 2001-09-09T01:46:40Z" in shown
    assert "other" not in host.ok("policy", "show", NAME)
    assert host.ok("policy", "forget", NAME) == f"{NAME}\n"
    assert host.ledger.newest(NAME) is None
    assert "no" in host.fails("policy", "forget", NAME)


# --- vmrun image verify ----------------------------------------------------------------------


def allowed(host: Host, *more: str) -> None:
    words = more or ("--identity-reference", NAME)
    host.ok("policy", "allow", host.root, "--transport", "oci", "--key", host.alice, *words)


def test_a_newcomer_from_key_to_verified_image(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMRUN_KEY_PASSWORD", "correct horse")
    image = signed_layout(host.root / "image")
    assert "rejected" in host.fails("image", "verify", image)
    host.ok("key", "generate", "--out", host.root / "mine")
    host.ok("policy", "allow", host.root, "--transport", "oci", "--key", host.root / "mine.pub",
            "--identity-reference", NAME)  # fmt: skip
    assert "not signed" in host.fails("image", "verify", image)
    host.ok("image", "sign", "--key", host.root / "mine.key", "--identity", NAME, image)
    assert NAME in host.ok("image", "verify", image)


def test_verify_prints_the_chain(host: Host) -> None:
    image = signed_layout(host.root / "image", ALICE)
    allowed(host)
    out = host.ok("image", "verify", image)
    digest = Digest.of(plain_image().manifest)
    policy = Digest.of(host.policy.read_bytes())
    for part in (
        str(digest),
        f"signed as {NAME} by key {ALICE.public.key_id}",
        "2001-09-09T01:46:40Z",
        "simple-signing",
        "bundle",
        f"policy {host.policy} ({policy})",
        f"oci: {host.root}",
    ):
        assert part in out
    document = json.loads(host.ok("image", "verify", "--json", image))
    assert document["trust"]["claims"][0]["identity"] == NAME
    assert document["digests"]["lineage"] == [str(digest)]


def test_looking_does_not_move_the_ledger(host: Host) -> None:
    image = signed_layout(host.root / "image", ALICE)
    allowed(host)
    host.ok("image", "verify", image)
    assert host.ledger.entries() == ()


def test_verify_hashes_every_byte(host: Host) -> None:
    image = signed_layout(host.root / "image", ALICE)
    allowed(host)
    blob = host.root / "image" / "blobs" / "sha256" / Digest.of(plain_image().layers[0].blob).hex
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert Digest.of(plain_image().layers[0].blob).hex in host.fails("image", "verify", image)


def test_verify_with_keys_alone_looks_at_no_policy(host: Host) -> None:
    image = signed_layout(host.root / "image", ALICE)
    host.write(host.policy, '{"default": [{"type": "reject"}]}')
    name = ("--identity", NAME)
    host.ok("image", "verify", "--key", host.alice, *name, image)
    host.ok("image", "verify", "--key", host.mallory, "--key", host.alice, *name, image)
    assert "none of these keys" in host.fails(
        "image", "verify", "--key", host.mallory, *name, image
    )
    other = ("--identity", "registry.example.com/prod/app:2")
    assert NAME in host.fails("image", "verify", "--key", host.alice, *other, image)
    # A layout has no name that could be the very same.
    host.fails("image", "verify", "--key", host.alice, image)
    host.ledger.advance(LedgerEntry(NAME, Digest.of(b"newer"), 2e9))
    host.ok("image", "verify", "--key", host.alice, *name, image)


@pytest.mark.parametrize("identity", ["app:1", "registry.example.com/prod/app", ""])
def test_an_identity_must_be_a_full_name(identity: str, host: Host) -> None:
    image = signed_layout(host.root / "image", ALICE)
    words = ("image", "verify", "--key", host.alice, "--identity", identity, image)
    assert host.run(*words)[0] == 2
    assert host.run("image", "verify", "--identity", NAME, image)[0] == 2


def test_policies_can_be_named(host: Host) -> None:
    image = signed_layout(host.root / "image")
    host.write(host.root / "lax.json", ANYTHING)
    host.write(host.root / "strict.toml", "version = 1\n")
    named = ("--policy", host.root / "lax.json", "--trust-rules", host.root / "strict.toml")
    _, out, err = host.run("image", "verify", *named, image)
    assert "NOT verified" in err
    assert str(host.root / "lax.json") in out
    host.write(host.site / "policy.json", '{"default": [{"type": "reject"}]}')
    assert "rejected" in host.fails("image", "verify", *named, image)
    host.fails("image", "verify", "--policy", host.root / "absent.json", image)


def test_archives_have_no_place_for_signatures(host: Host) -> None:
    built = make_image([file("x", b"x")])
    built.write_docker_archive(host.root / "app.tar")
    built.write_oci_archive(host.root / "oci.tar")
    requirement: dict[str, Any] = {"type": "sigstoreSigned", "keyPath": str(host.alice)}
    host.write(host.policy, json.dumps({"default": [requirement]}))
    for image in (f"docker-archive:{host.root}/app.tar", f"oci-archive:{host.root}/oci.tar"):
        assert "keeps no signatures" in host.fails("image", "verify", image)
