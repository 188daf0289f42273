"""``vmrun catalogue``: what a person types, and what a timer or a pipeline does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.catalogues import NAME, NEW, OLD
from vmrun.cli.catalogue import app
from vmrun.image.registry.repository import Repository
from vmrun.model.errors import ImageError, ImageNotFound, Refused, UsageError, VmrunError
from vmrun.model.image import Descriptor

Call = Callable[..., str]


@pytest.fixture(autouse=True)
def passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.trust.encrypted_key._N", 16)
    monkeypatch.setenv("VMRUN_CATALOGUE_PASSPHRASE", "secret")


@pytest.fixture
def vmrun_catalogue() -> Call:
    """Run a command, give its stdout; errors are raised."""

    def call(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(result.exception, VmrunError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


@pytest.fixture
def directory(vmrun_catalogue: Call, tmp_path: Path) -> Path:
    place = tmp_path / "catalogue"
    assert vmrun_catalogue("init", place) == f"{place / '1.root.json'}\n"
    assert vmrun_catalogue("add", place, NAME, OLD, "--length", 428) == f"{NAME}@{OLD}\n"
    return place


def test_the_life_of_a_catalogue(vmrun_catalogue: Call, directory: Path) -> None:
    root = directory.with_name("root.json")
    root.write_bytes((directory / "1.root.json").read_bytes())
    assert vmrun_catalogue("verify", directory, NAME, "--root", root) == f"{NAME}@{OLD}\n"
    assert NAME in vmrun_catalogue("ls", directory)
    assert "timestamp 3 is good until" in vmrun_catalogue("refresh", directory)
    for role in ("root", "targets", "snapshot", "timestamp"):
        assert vmrun_catalogue("rotate", directory, "--role", role).startswith(f"{role} ")
    vmrun_catalogue("add", directory, NAME, NEW, "--length", 428)
    assert vmrun_catalogue("verify", directory, NAME, "--root", root) == f"{NAME}@{NEW}\n"
    assert vmrun_catalogue("remove", directory, NAME) == f"{NAME}\n"
    with pytest.raises(Refused, match="does not list"):
        vmrun_catalogue("verify", directory, NAME, "--root", root)


def test_every_command_speaks_json(vmrun_catalogue: Call, tmp_path: Path) -> None:
    place = tmp_path / "catalogue"
    commands: tuple[tuple[object, ...], ...] = (
        ("init", place, "--keys", tmp_path / "k"),
        ("add", place, NAME, OLD, "--length", 428, "--keys", tmp_path / "k"),
        ("ls", place),
        ("refresh", place, "--keys", tmp_path / "k"),
        ("rotate", place, "--role", "snapshot", "--keys", tmp_path / "k"),
        ("remove", place, NAME, "--keys", tmp_path / "k"),
    )
    said: list[dict[str, Any]] = [
        json.loads(vmrun_catalogue(*words, "--json")) for words in commands
    ]
    assert said[0]["keys"] == str(tmp_path / "k")
    assert said[1]["digest"] == str(OLD)
    assert said[2]["names"] == {NAME: {"digest": str(OLD), "length": 428}}
    assert [one["roles"]["timestamp"]["version"] for one in said] == [1, 2, 2, 3, 4, 5]
    assert said[4]["role"] == "snapshot"
    assert said[5]["names"] == {}
    vmrun_catalogue("add", place, NAME, OLD, "--length", 428, "--keys", tmp_path / "k")
    entry = json.loads(vmrun_catalogue("verify", place, NAME, "--json"))
    assert (entry["digest"], entry["versions"]["targets"]) == (str(OLD), 4)


def test_the_passphrase_from_a_file(
    vmrun_catalogue: Call, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMRUN_CATALOGUE_PASSPHRASE")
    file = tmp_path / "passphrase"
    file.write_text("secret\nanything\n")
    vmrun_catalogue("add", directory, NAME, NEW, "--length", 1, "--passphrase-file", file)
    vmrun_catalogue("refresh", directory)  # needs none
    with pytest.raises(UsageError, match="need a passphrase"):
        vmrun_catalogue("add", directory, NAME, OLD, "--length", 1)
    file.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        vmrun_catalogue("init", tmp_path / "other", "--passphrase-file", file)
    with pytest.raises(UsageError, match="No such file"):
        vmrun_catalogue("init", tmp_path / "other", "--passphrase-file", tmp_path / "absent")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "other.keys").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("add", "oci:image:1.0", str(OLD), "--length", "1"),
        ("add", "app:1.0", str(OLD), "--length", "1"),
        ("add", f"registry.example.com/app@{OLD}", str(OLD), "--length", "1"),
        ("add", f"registry.example.com/app:1@{OLD}", str(OLD), "--length", "1"),
        ("add", NAME, "--length", "1"),
        ("add", NAME, str(OLD), "--length", "0"),
        ("remove", "registry.example.com/other:1"),
    ],
)
def test_what_cannot_be_done(
    vmrun_catalogue: Call, directory: Path, words: tuple[str, ...]
) -> None:
    before = vmrun_catalogue("ls", directory, "--json")
    with pytest.raises(UsageError):
        vmrun_catalogue(words[0], directory, *words[1:])
    assert vmrun_catalogue("ls", directory, "--json") == before


def test_a_digest_that_is_none(vmrun_catalogue: Call, directory: Path) -> None:
    with pytest.raises(ImageError, match="not a digest"):
        vmrun_catalogue("add", directory, NAME, "sha256:1", "--length", 1)


def test_the_registry_says_what_a_tag_leads_to(
    vmrun_catalogue: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def manifest(self: Repository, name: object) -> tuple[Descriptor, bytes] | None:
        asked.append((str(self), str(name)))
        return None if str(name) == "gone" else (Descriptor("application/x", NEW, 777), b"")

    monkeypatch.setattr(Repository, "manifest", manifest)
    assert vmrun_catalogue("add", directory, NAME) == f"{NAME}@{NEW}\n"
    vmrun_catalogue("add", directory, NAME, NEW)
    assert [name for _, name in asked] == ["1.0", str(NEW)]  # type: ignore[misc]
    listed = json.loads(vmrun_catalogue("ls", directory, "--json"))["names"]
    assert listed == {NAME: {"digest": str(NEW), "length": 777}}
    with pytest.raises(ImageNotFound, match="no such manifest"):
        vmrun_catalogue("add", directory, "registry.example.com/team/app:gone")


def test_a_url_does_not_vouch_for_itself(vmrun_catalogue: Call) -> None:
    with pytest.raises(UsageError, match="proves nothing"):
        vmrun_catalogue("verify", "https://catalogue.example.com", NAME)


def test_a_list_of_something_else(vmrun_catalogue: Call, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be reached"):
        vmrun_catalogue("ls", tmp_path / "absent")
    with pytest.raises(ImageError, match="is incomplete"):
        vmrun_catalogue("ls", tmp_path)
