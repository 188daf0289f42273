"""Named volumes for tests in guests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from vmrun.settings import load_settings
from vmrun.volume.luks import create_disk
from vmrun.volume.store import VolumeStore

_SIZE = 16 << 20


def quick_volume(name: str, passphrase: Path, *, tenant: str = "default") -> VolumeStore:
    """Make a volume whose passphrase opens it at once, and give the store that it is in. That
    guessing is slow is proved where disks are made, and each guest would wait for it twice."""
    store = VolumeStore(load_settings().directories.volumes, tenant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmrun.volume.store.create_disk", _copy)
        store.create(name, _SIZE, passphrase_file=passphrase)
    return store


def _copy(path: Path, size: int, passphrase: bytes, **_options: Any) -> None:
    path.touch(mode=0o600)
    path.write_bytes(_disk(size, passphrase))


@functools.cache
def _disk(size: int, passphrase: bytes) -> bytes:
    """qemu-img measures for two seconds how slow it could make guessing, whatever it is told."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk"
        create_disk(path, size, passphrase, guessable=False)
        return path.read_bytes()
