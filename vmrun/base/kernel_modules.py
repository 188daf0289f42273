"""Kernel modules with what they depend on, in the order in which they can be loaded."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from vmrun.model.errors import BaseError

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class ModuleTree:
    """The modules below ``usr/lib/modules/RELEASE`` of an unpacked kernel package."""

    def __init__(self, directory: Path) -> None:
        self._files = {
            _module_name(path.name): path
            for path in sorted(directory.rglob("*.ko*"))
            if path.is_file()
        }

    def load_order(self, wanted: Iterable[str], loaded: Iterable[str] = ()) -> dict[str, bytes]:
        """The wanted modules and their dependencies, dependencies first, each uncompressed.

        Those ``loaded`` already are left out. A module's signature is part of it and stays.
        """
        order: dict[str, bytes] = {}
        skip = set(loaded)

        def visit(name: str) -> None:
            if name in order or name in skip:
                return
            data = self._read(name)
            match = _DEPENDS.search(data)
            for dependency in (match[1].decode() if match else "").split(","):
                if dependency:
                    visit(_module_name(dependency))
            order[name] = data

        for name in wanted:
            visit(_module_name(name))
        return order

    def path(self, name: str) -> Path:
        """Where a module's file is in the tree."""
        try:
            return self._files[name]
        except KeyError:
            raise BaseError(
                f"the kernel package has no module {name}",
                hint="remove it from [modules] of the recipe if it is built into the kernel",
            ) from None

    def _read(self, name: str) -> bytes:
        path = self.path(name)
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data


def _module_name(text: str) -> str:
    return text.partition(".ko")[0].replace("-", "_")
