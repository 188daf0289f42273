"""``vmrun volume`` as it is typed: what it prints, what it refuses, what the journal has of it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vmrun.cli.volume import app
from vmrun.journal.journal import Journal
from vmrun.model.errors import Refused, StateError, UsageError
from vmrun.model.tenant import Quota, Tenant
from vmrun.model.workload import EngineName
from vmrun.settings import load_settings
from vmrun.tenant.store import TenantStore
from vmrun.volume import luks, store
from vmrun.volume.store import HeldVolume, VolumeStore

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "disk.qcow2"
    luks.create_disk(path, 16 << 20, PASSPHRASE, guessable=False)
    return path


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMRUN_STATE_DIR", str(tmp_path / "state"))

    def copy(path: Path, _size: int, _key: bytes) -> None:
        shutil.copyfile(template, path)

    monkeypatch.setattr(store, "create_disk", copy)


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE)
    path.chmod(0o600)
    return str(path)


def call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False, standalone_mode=False)
    return done.stdout


def events() -> list[tuple[str, dict[str, str]]]:
    entries = Journal(load_settings().directories.journal).entries()
    return [(entry.event, dict(entry.fields)) for entry in entries]


def test_from_its_creation_to_its_end(passphrase: str) -> None:
    assert call("create", "db", "--size", "16m", "--passphrase-file", passphrase) == "db\n"
    header, row = call("ls").splitlines()
    assert header.split()[0] == "NAME"
    assert row.split()[:3] == ["db", "16.0", "MiB"]
    assert passphrase in call("inspect", "db")
    document: dict[str, Any] = json.loads(call("inspect", "--json", "db"))
    assert (document["name"], document["size"], document["in_use_by"]) == ("db", 16 << 20, "")
    assert [item["name"] for item in json.loads(call("ls", "--json"))] == ["db"]
    assert call("rm", "db") == "db\n"
    assert json.loads(call("ls", "--json")) == []
    fields = {"volume": "db", "tenant": "default", "size": str(16 << 20)}
    assert events() == [("volume.create", fields), ("volume.rm", fields)]


def test_nothing_says_the_passphrase(passphrase: str) -> None:
    said = call("create", "db", "--size", "16m", "--passphrase-file", passphrase, "--json")
    said += call("inspect", "db") + call("ls", "--json") + str(events())
    assert "battery" not in said


@pytest.mark.parametrize(
    "words",
    [
        ("create", "db", "--size", "16m"),
        ("create", "db", "--size", "16m", "--passphrase-file", "x", "--passphrase-command", "y"),
        ("create", "../db", "--size", "16m", "--passphrase-file", "x"),
        ("create", "db", "--size", "1k", "--passphrase-file", "x"),
        ("create", "db", "--size", "lots", "--passphrase-file", "x"),
        ("create", "db", "--size", "16m", "--passphrase-file", "x", "--tenant", "../x"),
        ("inspect", "a/b"),
        ("rm", ""),
    ],
)
def test_bad_usage_makes_nothing(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        call(*words)
    assert events() == []


def test_one_in_use_is_said_to_be_and_stays(passphrase: str) -> None:
    call("create", "db", "--size", "16m", "--passphrase-file", passphrase)
    volume = VolumeStore(load_settings().directories.volumes, "default").get("db")
    with HeldVolume.take(volume, "0123456789ab"):
        assert "0123456789ab" in call("ls")
        with pytest.raises(StateError, match="in use by 0123456789ab"):
            call("rm", "db")
    assert call("rm", "db") == "db\n"


def test_a_tenant_must_exist_and_have_room(passphrase: str) -> None:
    words = ("create", "db", "--passphrase-file", passphrase, "--tenant", "bob")
    with pytest.raises(StateError, match="no tenant 'bob'"):
        call(*words, "--size", "16m")
    quota = Quota(cpus=1, memory=1 << 30, disk=24 << 20, guests=1)
    bob = Tenant("bob", time.time(), EngineName.CRUN, quota)
    TenantStore(load_settings().directories.tenants).create(bob)
    with pytest.raises(Refused, match="of disk do not fit"):
        call(*words, "--size", "32m")
    assert call(*words, "--size", "16m") == "db\n"
    assert call("ls", "--tenant", "bob").count("db") == 1
    assert "db" not in call("ls")
    with pytest.raises(StateError, match="tenant 'default' has no volume 'db'"):
        call("rm", "db")
    with pytest.raises(Refused, match="of disk do not fit"):
        call("create", "more", *words[2:], "--size", "16m")
