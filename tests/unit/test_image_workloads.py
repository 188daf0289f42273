"""The demo images: built from Debian packages, the same bytes each time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import fetched
from vmrun.image.command import resolve_command
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.image.user import User, resolve_user
from vmrun.scan.catalogue.read import catalogue

BUILD = Path(__file__).parents[2] / "images" / "workloads" / "build.py"


def build(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, BUILD, "busybox", *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode and "apt-get" in done.stderr:
        pytest.skip("apt cannot fetch packages here")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian")
def test_busybox(tmp_path: Path) -> None:
    first, second, archive = (tmp_path / name for name in ("first", "second", "archive"))
    build(first)
    assert "up to date" in build(first)
    build(second)
    build(archive, "--format", "docker-archive")

    found = fetched(f"oci:{first}:demo", tmp_path)
    assert fetch(parse_reference(f"oci:{second}"), tmp_path / "2").digest == found.digest
    saved = fetch(parse_reference(f"docker-archive:{archive}/busybox.tar"), tmp_path / "3")
    assert saved.config_blob.digest == found.config_blob.digest
    assert resolve_command(found.config, found.tree, []).executable == "/bin/busybox"
    assert resolve_command(found.config, found.tree, ["env"]).executable == "/bin/busybox"
    assert found.config.user == ""
    assert resolve_user("app", found.tree) == User(1000, 1000, (), "app", "/home/app")
    assert found.tree.entries["/tmp"].mode == 0o1777
    packages = catalogue(found)
    assert [package.name for package in packages.packages] == ["busybox-static"]
    assert packages.distribution is not None
    assert packages.unreadable == packages.unseen == ()


def test_does_not_overwrite_other_directories(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = subprocess.run(
        [sys.executable, BUILD, "busybox", tmp_path], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert (tmp_path / "precious").exists()
