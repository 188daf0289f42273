"""Images in an OCI image layout: a directory or an archive of one (image-layout.md)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from vmrun.image.document import parse_object
from vmrun.image.files import read_document
from vmrun.image.limits import ImageLimits
from vmrun.image.select import select
from vmrun.image.source import Files, Resolved, Transfer
from vmrun.image.streams import Readable
from vmrun.model.errors import ImageError, ImageNotFound
from vmrun.model.image import Descriptor


class OciSource:
    """An image of a layout, chosen by tag."""

    def __init__(
        self, files: Files, tag: str | None, architecture: str, limits: ImageLimits
    ) -> None:
        self._files = files
        self._tag = tag
        self._architecture = architecture
        self._limits = limits

    def resolve(self) -> Resolved:
        """Find the manifest by tag and platform."""
        self._check_version()
        index = read_document(self._files, "index.json", self._limits)
        where = self._files.describe("index.json")
        return select(index, where, self._tag, self._architecture, self._read, self._limits)

    def prepare(self, blobs: Sequence[Descriptor]) -> Transfer:
        """Nothing moves: the blobs are here."""
        return Transfer(present=len(blobs))

    def open(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """The bytes of a blob."""
        return self._files.open(_name(blob))

    def describe(self, blob: Descriptor) -> str:
        """Names a blob and where it lies."""
        return self._files.describe(_name(blob))

    def _read(self, blob: Descriptor) -> bytes:
        return read_document(self._files, _name(blob), self._limits)

    def _check_version(self) -> None:
        where = self._files.describe("oci-layout")
        try:
            data = read_document(self._files, "oci-layout", self._limits)
        except ImageNotFound as error:
            raise ImageNotFound(
                f"not an OCI layout: {error.message}",
                hint="for what docker save wrote use docker-archive:, else check the path",
            ) from None
        document = parse_object(data, where, self._limits)
        version = document.text("imageLayoutVersion")
        if not version.startswith("1."):
            raise ImageError(f"{where}: unknown imageLayoutVersion {version[:80]!r}")


def _name(blob: Descriptor) -> str:
    return f"blobs/{blob.digest.algorithm}/{blob.digest.hex}"
