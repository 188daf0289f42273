"""Reading what decides whom to trust: only files that nobody else can change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmrun.model.digest import Digest
from vmrun.model.errors import SettingsError, TrustError
from vmrun.model.trust import TrustFiles
from vmrun.policy.signature_policy import BUILT_IN, AcceptAnything, KeySource, Reject
from vmrun.trust.files import load_key, load_key_file, load_layers
from vmrun.trust.keys import PrivateKey

ANYTHING = b'{"default": [{"type": "insecureAcceptAnything"}]}'
REJECT = b'{"default": [{"type": "reject"}]}'
RULES = b"version = 1\n"


def write(path: Path, data: bytes, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def pair(directory: Path, **named: bool) -> TrustFiles:
    return TrustFiles(directory / "policy.json", directory / "trust.toml", **named)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


@pytest.fixture
def user(tmp_path: Path) -> Path:
    return tmp_path / "user"


def test_without_any_file_everything_is_rejected(site: Path, user: Path) -> None:
    [layer] = load_layers((pair(site), pair(user)))
    assert layer.policy == BUILT_IN
    assert layer.name == "built in"


def test_rules_alone_allow_nothing(site: Path, user: Path) -> None:
    write(user / "trust.toml", RULES)
    rules, built_in = load_layers((pair(site), pair(user)))
    assert rules.policy is None
    assert built_in.policy == BUILT_IN


def test_both_policies_apply_with_their_files_and_digests(site: Path, user: Path) -> None:
    write(site / "policy.json", REJECT)
    write(site / "trust.toml", RULES)
    write(user / "policy.json", ANYTHING)
    first, second = load_layers((pair(site), pair(user)))
    assert first.policy is not None
    assert first.policy.default == (Reject(),)
    assert first.files == (
        (str(site / "policy.json"), Digest.of(REJECT)),
        (str(site / "trust.toml"), Digest.of(RULES)),
    )
    assert second.policy is not None
    assert second.policy.default == (AcceptAnything(),)


@pytest.mark.parametrize("name", ["policy", "rules"])
def test_a_file_that_was_named_must_be_there(name: str, user: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_layers((pair(user, **{f"{name}_named": True}),))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777])
@pytest.mark.parametrize("name", ["policy.json", "trust.toml"])
def test_a_file_that_others_can_change_is_refused(mode: int, name: str, user: Path) -> None:
    write(user / name, ANYTHING if name == "policy.json" else RULES, mode)
    with pytest.raises(SettingsError, match="can be changed by others") as caught:
        load_layers((pair(user),))
    assert "chmod" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(user: Path) -> None:
    os.chown(write(user / "policy.json", ANYTHING), 65532, 65532)
    with pytest.raises(SettingsError, match="can be changed by others"):
        load_layers((pair(user),))


@pytest.mark.parametrize("name", ["policy.json", "trust.toml"])
def test_a_link_to_nothing_is_not_no_file(name: str, site: Path, user: Path) -> None:
    """A site's policy on a disk that is not there must not leave the user's alone."""
    write(user / "policy.json", ANYTHING)
    site.mkdir()
    (site / name).symlink_to(site / "elsewhere")
    with pytest.raises(SettingsError, match="link to a file that does not exist"):
        load_layers((pair(site), pair(user)))


def test_what_is_no_regular_file_is_refused(user: Path) -> None:
    user.mkdir()
    os.mkfifo(user / "policy.json")
    with pytest.raises(SettingsError, match="not a regular file"):
        load_layers((pair(user),))


def test_a_file_that_is_too_large_is_refused(user: Path) -> None:
    write(user / "trust.toml", b"#" * (1 << 20) + b"\n")
    with pytest.raises(SettingsError, match="more than"):
        load_layers((pair(user),))


def test_an_error_names_its_file(user: Path) -> None:
    write(user / "policy.json", b"{}")
    with pytest.raises(SettingsError, match=str(user / "policy.json")):
        load_layers((pair(user),))


def test_keys_of_files_and_of_the_policy_are_the_same(tmp_path: Path) -> None:
    key = PrivateKey.generate().public
    path = write(tmp_path / "a.pub", key.pem)
    assert load_key(KeySource(path=str(path))).key_id == key.key_id
    assert load_key(KeySource(data=key.pem, where="policy")).key_id == key.key_id


def test_bad_key_files(tmp_path: Path) -> None:
    key = PrivateKey.generate().public
    with pytest.raises(SettingsError, match="does not exist"):
        load_key_file(tmp_path / "absent.pub")
    with pytest.raises(SettingsError, match="can be changed by others"):
        load_key_file(write(tmp_path / "open.pub", key.pem, 0o666))
    with pytest.raises(SettingsError, match="more than"):
        load_key_file(write(tmp_path / "large.pub", key.pem + b"\n" * 65536))
    with pytest.raises(TrustError, match=r"broken\.pub"):
        load_key_file(write(tmp_path / "broken.pub", b"-----BEGIN PUBLIC KEY-----"))
