"""The bytes of files of a fetched image, as they are once all layers are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmrun.image.compression import decompress
from vmrun.image.streams import CHUNK, Readable, open_regular
from vmrun.model.errors import ImageError, ImageTooLarge
from vmrun.model.image import Image, Layer


@dataclass(frozen=True, slots=True)
class FileBytes:
    """A file of the flattened image, and the layer that its bytes come from. ``data`` is all of
    it, or as much as was asked for."""

    path: str
    layer: Layer
    data: bytes


def read_files(
    image: Image,
    wanted: Callable[[str], bool],
    *,
    largest: int,
    total: int,
    first: int | None = None,
) -> Iterator[FileBytes]:
    """The files whose absolute path is ``wanted``, layer by layer; each layer that has any is
    unpacked once, as a stream, and only to the last of them.

    ``largest`` bounds one file and ``total`` all of them together, in bytes. With ``first`` no
    more than so many bytes of each are read, and only those count.
    Raises :class:`ImageTooLarge` beyond either, and :class:`ImageError` when a layer changed
    since it was judged.
    """
    found = sorted(
        (content.layer, content.offset, _clipped(content.size, first), path)
        for path, content in image.tree.contents.items()
        if wanted(path)
    )
    for _, _, size, path in found:
        if size > largest:
            raise ImageTooLarge(f"{path!r} of the image has {size} bytes, the limit is {largest}")
        total -= size
    if total < 0:
        raise ImageTooLarge(f"{len(found)} files of the image to be read are too large together")
    for number, layer in enumerate(image.layers):
        files = [(offset, size, path) for at, offset, size, path in found if at == number]
        if files:
            yield from _of_layer(image, layer, files)


def _of_layer(image: Image, layer: Layer, files: list[tuple[int, int, str]]) -> Iterator[FileBytes]:
    where = f"layer {layer.blob.digest}"
    with open_regular(image.blob_path(layer.blob.digest), where) as file:
        stream = decompress(file, layer.compression, where)
        at = 0
        data, start = b"", -1
        for offset, size, path in files:
            if offset != start:  # hard links have the same bytes
                _pass_over(stream, offset - at, where)
                data, start = _read(stream, size, where), offset
                at = offset + size
            yield FileBytes(path, layer, data)


def _clipped(size: int, first: int | None) -> int:
    return size if first is None else min(size, first)


def _pass_over(stream: Readable, size: int, where: str) -> None:
    while size:
        chunk = stream.read(min(size, CHUNK))
        if not chunk:
            raise _changed(where)
        size -= len(chunk)


def _read(stream: Readable, size: int, where: str) -> bytes:
    parts = []
    while size:
        chunk = stream.read(min(size, CHUNK))
        if not chunk:
            raise _changed(where)
        parts.append(chunk)
        size -= len(chunk)
    return b"".join(parts)


def _changed(where: str) -> ImageError:
    return ImageError(
        f"{where}: changed while it was read", hint="find out who else writes there, and try again"
    )
