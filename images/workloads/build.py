#!/usr/bin/env python3
"""Builds a demo image from Debian packages, without Docker and without a registry.

    images/workloads/build.py busybox /var/tmp/busybox
    vmrun run oci:/var/tmp/busybox:demo -- echo hello

With ``--format docker-archive`` the result is ``OUT_DIR/NAME.tar``, for ``docker load``.
Nothing is done when OUT_DIR holds the image of the same packages and recipe already.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from oci import Contents, with_folders, write_docker_archive, write_layout
from packages import (
    architecture,
    download,
    download_wheels,
    package_hashes,
    with_dependencies,
)
from recipes import RECIPES, Recipe

TAG = "demo"
_STAMP = ".inputs"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
    )
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--format", choices=("oci", "docker-archive"), default="oci")
    arguments = parser.parse_args()
    build(arguments.name, arguments.out_dir, arguments.format)
    return 0


def build(name: str, out_dir: Path, form: str) -> None:
    """Build the image unless ``out_dir`` holds it already."""
    recipe = RECIPES[name]
    names = with_dependencies(recipe.packages) if recipe.complete else list(recipe.packages)
    inputs = _inputs(names, name, form)
    stamp = out_dir / _STAMP
    if stamp.exists() and stamp.read_text() == inputs:
        print(f"{out_dir}: up to date", file=sys.stderr)
        return
    if out_dir.exists() and any(out_dir.iterdir()) and not stamp.exists():
        sys.exit(f"{out_dir}: not empty and not a demo image; choose another directory")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out_dir.parent) as scratch:
        result = Path(scratch, "result")
        result.mkdir()
        _write(recipe, names, name, form, Path(scratch), result)
        (result / _STAMP).write_text(inputs)
        if out_dir.exists():
            shutil.rmtree(out_dir)
        result.rename(out_dir)


def _write(
    recipe: Recipe, names: list[str], name: str, form: str, scratch: Path, result: Path
) -> None:
    downloads, work = scratch / "downloads", scratch / "work"
    downloads.mkdir()
    work.mkdir()
    download(names, downloads)
    download_wheels(recipe.wheels, downloads)
    entries = with_folders(recipe.collect(downloads, work))
    contents = Contents(entries, architecture(), recipe.settings)
    if form == "oci":
        write_layout(contents, result, TAG)
    else:
        write_docker_archive(contents, result / f"{name}.tar", f"{name}:{TAG}")


def _inputs(names: list[str], name: str, form: str) -> str:
    """A digest of all that decides the result: packages, format and these sources, which pin
    the wheels."""
    hasher = hashlib.sha256()
    for part in (name, form, architecture(), *package_hashes(names)):
        hasher.update(f"{part}\n".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(source.read_bytes())
    return hasher.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
