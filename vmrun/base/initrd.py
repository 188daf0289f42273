"""Writing an initrd: the kernel's newc cpio format, byte for byte the same for the same input.

See Documentation/driver-api/early-userspace/buffer-format.rst. Owners and times are always 0.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

_TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class Cpio:
    """An archive in the making; entries appear in the order in which they are added."""

    _parts: list[bytes] = field(default_factory=list)
    _inode: int = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory; its parent must have been added before."""
        self._add(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, data)

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(name, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._inode = -1
        self._add(_TRAILER, 0)
        return b"".join(self._parts)

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts += [_padded(header + encoded), _padded(data)]


def make_initrd(init: bytes, modules: Mapping[str, bytes]) -> bytes:
    """An initrd with ``init`` as ``/init`` and the modules, to be loaded in their order.

    It is not compressed: the kernel copies it faster than it would unpack it, most of all under
    emulation.
    """
    cpio = Cpio()
    for name in ("dev", "proc", "sys", "root", "modules"):
        cpio.directory(name)
    cpio.character_device("dev/console", 5, 1)
    cpio.file("init", init, 0o755)
    for name, data in modules.items():
        cpio.file(f"modules/{name}.ko", data)
    cpio.file("modules/list", module_list(modules))
    return cpio.finish()


def module_list(modules: Mapping[str, bytes]) -> bytes:
    """The list of modules as the init reads it."""
    return "".join(f"{name}.ko\n" for name in modules).encode()


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
