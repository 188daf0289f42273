"""Assembling the root of a base: only what the recipe names, and what that needs to run."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from vmrun.base import elf
from vmrun.base.recipe import Recipe
from vmrun.model.errors import BaseError

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
INTERPRETER = "ld-linux-x86-64.so.2"
OWN = "usr/lib/vmrun"
_DIRECTORIES: Mapping[str, int] = {
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
}
_SECRET_FILES = {"/etc/shadow"}


class RootTree:
    """A root in the making, in ``directory``, taken from the packages unpacked in ``unpacked``.

    ``used`` collects the paths in ``unpacked`` that something was copied from.
    """

    def __init__(self, directory: Path, unpacked: Path) -> None:
        self._directory = directory
        self._unpacked = unpacked
        self.used: set[str] = set()
        directory.mkdir()
        directory.chmod(0o755)
        for name, mode in _DIRECTORIES.items():
            (directory / name).mkdir()
            (directory / name).chmod(mode)

    def add_file(self, path: str, data: bytes, mode: int) -> None:
        """Write one file."""
        target = self._target(path)
        if target.exists():
            raise BaseError(f"two things in the recipe are named {path}")
        target.write_bytes(data)
        target.chmod(mode)

    def add_link(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        self._target(path).symlink_to(target)

    def add_tree(self, source: Path) -> None:
        """Copy all files below ``source``; modes are 0644, or 0600 where they must be."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = f"/{path.relative_to(source)}"
                self.add_file(name, path.read_bytes(), 0o600 if name in _SECRET_FILES else 0o644)

    def add_programs(self, paths: Iterable[str]) -> None:
        """Copy programs with their interpreters and libraries, each under one name."""
        waiting = [(path, 0o755) for path in paths]
        done: set[str] = set()
        while waiting:
            path, mode = waiting.pop()
            if path in done:
                continue
            done.add(path)
            data = self._take(path)
            self.add_file(path, data, mode)
            try:
                needs = elf.read_needs(data)
            except (ValueError, struct.error) as error:
                raise BaseError(f"{path} is a malformed ELF file: {error}") from error
            if needs is None:
                continue
            if needs.interpreter is not None:
                waiting.append((_merged(needs.interpreter), 0o755))
            for library in needs.libraries:
                if library != INTERPRETER:
                    waiting.append((f"{LIBRARIES}/{library}", 0o644))

    def _take(self, path: str) -> bytes:
        """The content of a file of the packages, following links within them."""
        seen = 0
        while (source := self._unpacked / path.lstrip("/")).is_symlink():
            seen += 1
            if seen > 8:
                raise BaseError(f"too many symbolic links at {path}")
            linked = os.path.join(os.path.dirname(path), os.readlink(source))
            path = _merged(os.path.normpath(linked))
        if not source.is_file():
            raise BaseError(
                f"no package has {path}",
                hint="the suite may have moved it: correct the recipe",
            )
        self.used.add(path)
        return source.read_bytes()

    def _target(self, path: str) -> Path:
        target = self._directory / path.lstrip("/")
        for parent in reversed(target.relative_to(self._directory).parents):
            directory = self._directory / parent
            if not directory.exists():
                directory.mkdir()
                directory.chmod(0o755)
        return target


def _merged(path: str) -> str:
    """The path below /usr of what may be named through the links /bin, /lib, … at the root."""
    first = path.split("/", 2)[1]
    return f"/usr{path}" if first in {"bin", "sbin", "lib", "lib64"} else path


def assemble_root(
    tree: RootTree,
    recipe: Recipe,
    binaries: Path,
    modules: Mapping[str, bytes],
    module_list: bytes,
) -> None:
    """Put everything the recipe names into ``tree``."""
    tree.add_programs(recipe.programs)
    for name in ("init", "guest", "gate"):
        tree.add_file(f"{OWN}/{name}", (binaries / name).read_bytes(), 0o755)
    for name, data in modules.items():
        tree.add_file(f"{OWN}/modules/{name}.ko", data, 0o644)
    tree.add_file(f"{OWN}/modules/list", module_list, 0o644)
    tree.add_file(f"{OWN}/flavour", f"{recipe.flavour}\n".encode(), 0o644)
    tree.add_file(f"{OWN}/sysctl.conf", recipe.sysctls.read_bytes(), 0o644)
    services = "".join(f"{line}\n" for line in recipe.services)
    tree.add_file(f"{OWN}/services", services.encode(), 0o644)
    for directory in recipe.files:
        tree.add_tree(directory)
    for path, target in recipe.links.items():
        tree.add_link(path, target)
    for applet in recipe.applets:
        tree.add_link(f"/usr/bin/{applet}", "busybox")
