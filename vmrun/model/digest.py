"""Content digests as in the OCI image specification (descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from vmrun.model.errors import ImageError

_HEX = {"sha256": 64, "sha512": 128}
_FORM = re.compile(r"(sha256|sha512):([0-9a-f]+)")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm and lower-case hex, e.g. ``sha256:e3b0…``."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Read ``algorithm:hex``; raises :class:`ImageError` for anything else."""
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None or len(match[2]) != _HEX[match[1]]:
            raise ImageError(
                f"not a digest: {str(text)[:80]!r}",
                hint="expected sha256: followed by 64 lower-case hex digits",
            )
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 digest of ``data``."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people; never an identity."""
        return self.hex[:12]

    def hasher(self) -> hashlib._Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)
