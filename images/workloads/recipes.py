"""The demo images: which packages each one takes, and what it makes of their files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oci import Entry

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
        "home/app": Entry(owner=1000),
        "tmp": Entry(mode=0o1777),
        "usr/bin/env": Entry(target="../../bin/busybox"),
    }


RECIPES: Mapping[str, Recipe] = {
    # The image names no user, so it says root: vmrun's default profile maps that away.
    "busybox": Recipe(
        packages=("busybox-static",),
        collect=_busybox,
        settings={"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]},
    ),
}
