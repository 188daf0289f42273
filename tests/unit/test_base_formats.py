"""The formats a base is made of: cpio, dm-verity, ELF, recipes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmrun.base import elf
from vmrun.base.debs import Package, parse_selection
from vmrun.base.initrd import Cpio, make_initrd, module_list
from vmrun.base.recipe import load_recipe, recipe_directory
from vmrun.base.verity import BLOCK, append_hash_tree
from vmrun.model.base import Flavour
from vmrun.model.errors import BaseError


def test_initrd_is_what_cpio_reads() -> None:
    if shutil.which("cpio") is None:
        pytest.skip("needs cpio")
    data = make_initrd(b"#!init", {"b": b"1", "a": b"22"})
    listing = subprocess.run(
        ["cpio", "-itv", "--numeric-uid-gid", "--quiet"],
        input=data,
        capture_output=True,
        check=True,
    ).stdout.decode()
    names = [line.split()[-1] for line in listing.splitlines()]
    assert names == [
        "dev",
        "proc",
        "sys",
        "root",
        "modules",
        "dev/console",
        "init",
        "modules/b.ko",
        "modules/a.ko",
        "modules/list",
    ]
    assert "crw-------" in next(line for line in listing.splitlines() if "console" in line)


def test_initrd_layout() -> None:
    cpio = Cpio()
    cpio.file("f", b"abc", 0o600)
    data = cpio.finish()
    assert data.startswith(b"070701" + b"00000001" + b"00008180" + b"00000000" * 2)
    assert data[110:112] == b"f\0"
    assert data[112:116] == b"abc\0"
    assert len(data) % 4 == 0
    assert data[116:].startswith(b"070701")
    assert b"TRAILER!!!\0" in data[116:]


def test_modules_are_listed_in_their_order() -> None:
    assert module_list({"z": b"", "a": b""}) == b"z.ko\na.ko\n"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(blocks=st.integers(2, 300), rest=st.integers(0, BLOCK - 1))
def test_hash_tree_is_deterministic_and_padded(tmp_path: Path, blocks: int, rest: int) -> None:
    content = hashlib.shake_128(b"x").digest(blocks * BLOCK + rest)
    results = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(content)
        results.append(append_hash_tree(tmp_path / name))
    assert results[0] == results[1]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").stat().st_size % BLOCK == 0
    assert results[0].data_blocks == blocks + (rest > 0) == results[0].hash_start


@pytest.mark.parametrize("blocks", [2, 127, 128, 129, 16384, 16385])
def test_hash_tree_is_what_veritysetup_makes(tmp_path: Path, blocks: int) -> None:
    if shutil.which("veritysetup") is None:
        pytest.skip("needs veritysetup")
    image = tmp_path / "image"
    image.write_bytes(hashlib.shake_128(b"y").digest(4096) * blocks)
    verity = append_hash_tree(image)
    subprocess.run(
        [
            "veritysetup",
            "verify",
            "--no-superblock",
            "--hash=sha256",
            f"--salt={verity.salt}",
            "--data-block-size=4096",
            "--hash-block-size=4096",
            f"--data-blocks={verity.data_blocks}",
            f"--hash-offset={verity.hash_start * BLOCK}",
            image,
            image,
            verity.root_hash,
        ],
        check=True,
        capture_output=True,
    )


def test_elf_needs_of_a_program() -> None:
    needs = elf.read_needs(Path("/bin/ls").read_bytes())
    assert needs is not None
    assert needs.interpreter is not None
    assert "libc.so.6" in needs.libraries


def test_elf_of_something_else() -> None:
    assert elf.read_needs(b"#!/bin/sh\n") is None
    assert elf.read_needs(b"") is None


def test_selection_of_apt() -> None:
    text = (
        "NOTE\nInst zstd (1.5.7+dfsg-1 Debian:13/stable [amd64])\nInst a:amd64 (2:1 x [all]) []\n"
    )
    packages = parse_selection(text)
    assert packages == (Package("a", "2:1", "all"), Package("zstd", "1.5.7+dfsg-1", "amd64"))
    assert packages[0].file_name == "a_2%3a1_all.deb"


@pytest.mark.parametrize("flavour", list(Flavour))
def test_recipes_of_the_project(flavour: Flavour) -> None:
    recipe = load_recipe(recipe_directory(), flavour)
    assert recipe.flavour is flavour
    assert "crun" in recipe.packages
    assert all(directory.is_dir() for directory in recipe.files)
    assert bool(recipe.services) == (flavour is Flavour.DOCKER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flavour = 'other'",
        "flavour = 'minimal'\nbogus = 1",
        "flavour = 'minimal'",
        "extends = 'missing'\nflavour = 'minimal'",
        "extends = 'x'\nflavour = 'minimal'\npackages = [1]",
        "extends = 'x'\nflavour = 'minimal'\n[modules]\nother = []",
        "not toml",
    ],
)
def test_malformed_recipes(tmp_path: Path, text: str) -> None:
    (tmp_path / "minimal.toml").write_text(text)
    with pytest.raises(BaseError):
        load_recipe(tmp_path, Flavour.MINIMAL)
