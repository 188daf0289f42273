"""The demo images: which packages each one takes, and what it makes of their files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import debian
from oci import Entry
from packages import control, extract, packages_in

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
_GROUP = b"root:x:0:\napp:x:1000:\n"
_STATUS_D = "var/lib/dpkg/status.d"
VULNERABLE = "requests==2.19.1"


@dataclass(frozen=True)
class Recipe:
    """``collect`` turns the downloaded packages and wheels into the entries of the image; its
    second argument is an empty folder. ``complete``: all that the packages need is taken, too."""

    packages: tuple[str, ...]
    collect: Callable[[Path, Path], Mapping[str, Entry]]
    settings: Mapping[str, object]
    complete: bool = False
    wheels: Mapping[str, str] = field(default_factory=dict)


def _busybox(downloads: Path, root: Path, package: str = "busybox-static") -> Mapping[str, Entry]:
    extract(downloads, root)
    binary = root / "bin" / "busybox"
    if not binary.exists():
        binary = root / "usr" / "bin" / "busybox"
    listed = subprocess.run([binary, "--list"], check=True, stdout=subprocess.PIPE, text=True)
    directories = ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var")
    return {
        **{path: Entry() for path in directories},
        **{f"bin/{applet}": Entry(target="busybox") for applet in listed.stdout.split()},
        "bin/busybox": Entry(binary.read_bytes()),
        "etc/os-release": Entry((root / "usr/lib/os-release").read_bytes(), mode=0o644),
        "etc/passwd": Entry(_PASSWD, mode=0o644),
        "etc/group": Entry(_GROUP, mode=0o644),
        "home/app": Entry(owner=1000),
        "tmp": Entry(mode=0o1777),
        "usr/bin/env": Entry(target="../../bin/busybox"),
        **_recorded(downloads, package),
    }


def _web(downloads: Path, root: Path) -> Mapping[str, Entry]:
    """busybox with the C library beside it, so that it finds hosts by their names, and a page."""
    image = dict(_busybox(downloads, root, "busybox"))
    libraries = "usr/lib/x86_64-linux-gnu"
    found = {path.name: path for path in root.rglob("*.so*") if path.is_file()}
    loader = "ld-linux-x86-64.so.2"
    for name in (loader, "libc.so.6", "libm.so.6", "libresolv.so.2"):
        image[f"{libraries}/{name}"] = Entry(found[name].read_bytes())
    return {
        **image,
        "lib": Entry(target="usr/lib"),
        "lib64": Entry(),
        f"lib64/{loader}": Entry(target=f"../{libraries}/{loader}"),
        "usr/lib": Entry(),
        libraries: Entry(),
        "etc/nsswitch.conf": Entry(b"hosts: files dns\n", mode=0o644),
        "www": Entry(),
        "www/index.html": Entry(b"hello from a guest\n", mode=0o644),
        **_recorded(downloads, "libc6"),
    }


def _recorded(downloads: Path, name: str) -> Mapping[str, Entry]:
    """The record of a package in an image that has no dpkg, as in Debian's distroless images."""
    package = next(path for path in packages_in(downloads) if path.name.startswith(f"{name}_"))
    files = control(package)
    return {
        f"{_STATUS_D}/{name}": Entry(files["control"].encode(), mode=0o644),
        f"{_STATUS_D}/{name}.md5sums": Entry(files["md5sums"].encode(), mode=0o644),
    }


def _vulnerable(downloads: Path, root: Path) -> Mapping[str, Entry]:
    """busybox, and an old Python package with a known hole, as pip would install it."""
    wheels = debian.installed_wheels(downloads, "usr/lib/python3/dist-packages")
    return {**_busybox(downloads, root), **wheels}


RECIPES: Mapping[str, Recipe] = {
    # The image names no user, so it says root: vmrun's default profile maps that away.
    "busybox": Recipe(
        # Of base-files the image has but /etc/os-release, which says whose package it is.
        packages=("busybox-static", "base-files"),
        collect=_busybox,
        settings={"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]},
    ),
    "vulnerable": Recipe(
        packages=("busybox-static", "base-files"),
        collect=_vulnerable,
        settings={"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]},
        wheels={VULNERABLE: debian.WHEELS[VULNERABLE]},
    ),
    "web": Recipe(
        packages=("busybox", "libc6", "base-files"),
        collect=_web,
        settings={
            "Cmd": ["httpd", "-f", "-p", "8080", "-h", "/www"],
            "Env": ["PATH=/bin:/usr/bin"],
            "User": "app",
        },
    ),
    "debian": Recipe(
        packages=debian.PACKAGES,
        collect=debian.collect,
        settings={
            "Cmd": ["bash"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        complete=True,
        wheels=debian.WHEELS,
    ),
}
