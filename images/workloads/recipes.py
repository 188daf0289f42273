"""The demo images: which packages each one takes, and what it makes of their files."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oci import Entry
from packages import STATUS_D, wheel

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
_GROUP = b"root:x:0:\napp:x:1000:\n"


@dataclass(frozen=True)
class Recipe:
    """``collect`` turns the unpacked packages into the entries of the image."""

    packages: tuple[str, ...]
    collect: Callable[[Path], Mapping[str, Entry]]
    settings: Mapping[str, object]


def _busybox(root: Path) -> Mapping[str, Entry]:
    binary = root / "bin" / "busybox"
    if not binary.exists():
        binary = root / "usr" / "bin" / "busybox"
    listed = subprocess.run([binary, "--list"], check=True, stdout=subprocess.PIPE, text=True)
    directories = ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var")
    return {
        **{path: Entry() for path in directories},
        **{f"bin/{applet}": Entry(target="busybox") for applet in listed.stdout.split()},
        "bin/busybox": Entry(binary.read_bytes()),
        "etc/passwd": Entry(_PASSWD, mode=0o644),
        "etc/group": Entry(_GROUP, mode=0o644),
        "etc/os-release": Entry(Path("/etc/os-release").read_bytes(), mode=0o644),
        "home/app": Entry(owner=1000),
        "tmp": Entry(mode=0o1777),
        "usr/bin/env": Entry(target="../../bin/busybox"),
        **_tree(root, STATUS_D),
    }


def _vulnerable(root: Path) -> Mapping[str, Entry]:
    """busybox, and an old Python package with a known hole: a wheel as pip would unpack it."""
    downloads = root.parent / "wheels"
    downloads.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel(VULNERABLE, downloads)) as archive:
        archive.extractall(root / _SITE)
    return {**_busybox(root), **_tree(root, _SITE)}


def _tree(root: Path, below: str) -> Mapping[str, Entry]:
    """The files in a folder, and all folders on the way to them."""
    files = sorted(path for path in (root / below).rglob("*") if path.is_file())
    entries = {str(path.relative_to(root)): Entry(path.read_bytes(), mode=0o644) for path in files}
    parents = {str(parent) for name in entries for parent in Path(name).parents} - {"."}
    return {**{parent: Entry() for parent in sorted(parents)}, **entries}


VULNERABLE = "requests==2.19.1"
_SITE = "usr/lib/python3/dist-packages"

RECIPES: Mapping[str, Recipe] = {
    # The image names no user, so it says root: vmrun's default profile maps that away.
    "busybox": Recipe(
        packages=("busybox-static",),
        collect=_busybox,
        settings={"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]},
    ),
    "vulnerable": Recipe(
        packages=("busybox-static",),
        collect=_vulnerable,
        settings={"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]},
    ),
}
