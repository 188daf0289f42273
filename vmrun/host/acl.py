"""Access control lists of directories, as the kernel takes them in an extended attribute
(acl(5); linux/posix_acl_xattr.h)."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

_NAME = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_ALL, _WALK = 7, 1
_NOBODY = 0xFFFFFFFF


def open_to(directory: Path, uid: int) -> bool:
    """Let ``uid`` walk through ``directory``, its owner do anything, and nobody else do a thing;
    False where the file system has no such lists. Raises :class:`OSError`."""
    entries = (
        (_USER_OBJ, _ALL, _NOBODY),
        (_USER, _WALK, uid),
        (_GROUP_OBJ, 0, _NOBODY),
        (_MASK, _WALK, _NOBODY),
        (_OTHER, 0, _NOBODY),
    )
    value = _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)
    try:
        os.setxattr(directory, _NAME, value)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return False
        raise
    return True
