"""An answer of a registry, read as a stream that nobody has vouched for."""

from __future__ import annotations

import json
import time
from http.client import HTTPException

import urllib3

from vmrun.image.limits import KIB
from vmrun.image.streams import CHUNK
from vmrun.model.errors import ImageError, ImageTooLarge

SLOWEST = 16 * KIB
"""Bytes per second below which a stream is given up, judged after :data:`PATIENCE`."""
PATIENCE = 60.0
_TOGETHER = 1.0
"""Seconds for which a read goes on collecting small pieces."""
_PROBLEM = 4 * KIB
_DENIALS = frozenset({"DENIED", "UNAUTHORIZED", "TOOMANYREQUESTS"})


class Passing(ImageError):
    """A failure that may pass; ``after`` is how many seconds the peer asks us to wait."""

    def __init__(self, message: str, *, hint: str = "", after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class Response:
    """``url`` is what was asked for in the end. ``direct`` says that the registry itself answers,
    and nobody that it redirected us to."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, url: str, what: str, *, direct: bool
    ) -> None:
        self._response = response
        self.url = url
        self.direct = direct
        self._what = what
        self._start = time.monotonic()
        self._taken = 0
        self._problem: str | None = None

    @property
    def status(self) -> int:
        """HTTP's status."""
        return self._response.status

    def header(self, name: str) -> str:
        """A header's value, empty when it is absent. One with control characters in it is an
        :class:`ImageError`."""
        value = str(self._response.headers.get(name, ""))
        if len(value) > 8 * KIB or not value.replace("\t", " ").isprintable():
            raise ImageError(
                f"{self._what}: header {name} of the answer is malformed",
                hint="ask who runs the registry",
            )
        return value

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end. A body that breaks off or stalls is
        :class:`Passing`, one that trickles an :class:`ImageError`."""
        wanted = min(size, CHUNK)
        parts: list[bytes] = []
        began = time.monotonic()
        while wanted and (piece := self._piece(wanted)):
            parts.append(piece)
            wanted -= len(piece)
            if time.monotonic() - began > _TOGETHER:
                break
        return b"".join(parts)

    def _piece(self, size: int) -> bytes:
        try:
            data = bytes(self._response.read1(size, decode_content=False) or b"")
        except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            raise Passing(
                f"{self._what}: the answer broke off: {reason(error)}",
                hint="try again; if it happens again ask who runs the registry",
            ) from None
        self._taken += len(data)
        elapsed = time.monotonic() - self._start
        if data and elapsed > PATIENCE and self._taken < SLOWEST * elapsed:
            raise ImageError(
                f"{self._what}: {self._taken} bytes in {elapsed:.0f} s is too slow",
                hint="try again on a better connection",
            )
        return data

    def document(self, limit: int) -> bytes:
        """A whole body that should be small. :class:`ImageTooLarge` if it is not."""
        said = self.header("Content-Length")
        if said.isascii() and said.isdecimal() and int(said[:20]) > limit:
            raise self._too_large(limit)
        parts, size = [], 0
        while data := self.read(CHUNK):
            size += len(data)
            if size > limit:
                raise self._too_large(limit)
            parts.append(data)
        return b"".join(parts)

    def _too_large(self, limit: int) -> ImageTooLarge:
        return ImageTooLarge(
            f"{self._what}: the answer has more than {limit} bytes",
            hint="ask who runs the registry",
        )

    def problem(self) -> str:
        """What the body says went wrong, in a few printable characters."""
        text = self._complaint()
        said = "; ".join(f"{code}: {message}" for code, message in _errors(text)) or text
        return "".join(c if c.isprintable() else " " for c in said)[:300].strip()

    def absent(self) -> bool:
        """Whether this is the registry's own word that there is no such thing: a 404 that came
        from it, and does not say in its body that we were denied."""
        if self.status != 404 or not self.direct:
            return False
        return _DENIALS.isdisjoint(code for code, _ in _errors(self._complaint()))

    def _complaint(self) -> str:
        if self._problem is None:
            data = b""
            try:
                while len(data) < _PROBLEM and (piece := self.read(_PROBLEM - len(data))):
                    data += piece
            except ImageError:
                pass  # the status has said enough
            self._problem = data.decode("utf-8", "replace")
        return self._problem

    def close(self) -> None:
        """Give the connection back if a few bytes at most are left, else end it."""
        left = getattr(self._response, "length_remaining", None)
        if not self._response.closed and left is not None and left <= _PROBLEM:
            self._complaint()
        if self._response.closed:
            self._response.release_conn()
        else:
            self._response.close()


def _errors(text: str) -> list[tuple[str, str]]:
    """Codes and messages (distribution-spec, "Error Codes"), as far as there are any."""
    try:
        return [
            (str(error["code"]), str(error.get("message") or ""))
            for error in json.loads(text)["errors"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def reason(error: BaseException) -> str:
    """Why a request failed, without urllib3's names of objects."""
    text = str(getattr(error, "reason", None) or error)
    text = text.rpartition(">: ")[2] if ">: " in text else text
    return "".join(c if c.isprintable() else " " for c in text)[:200] or type(error).__name__
