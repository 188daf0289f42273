"""Blobs of the host's layout, as they are sent to a guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vmrun.model.errors import ImageError
from vmrun.model.image import Descriptor

_CHUNK = 256 << 10


def read_blob(path: Path, blob: Descriptor) -> Iterator[bytes]:
    """Exactly as many bytes as the guest was told to expect; it checks what they hash to."""
    remaining = blob.size
    try:
        with path.open("rb") as file:
            while remaining:
                chunk = file.read(min(_CHUNK, remaining))
                if not chunk:
                    raise ImageError(f"{path} is shorter than the {blob.size} bytes it must have")
                remaining -= len(chunk)
                yield chunk
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
