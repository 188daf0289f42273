"""``vmrun image pull`` and ``vmrun image push``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import note, print_json
from vmrun.image.reference import parse_reference
from vmrun.model.errors import UsageError
from vmrun.model.image import Reference, Transport
from vmrun.model.quantity import format_size

if TYPE_CHECKING:
    from vmrun.run.images import ImageOptions

_EVERY = 0.1

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]


def pull_command(
    image: Annotated[str, typer.Argument(help="HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]")],
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Download an image into the local store. Every byte is hashed; nothing is verified yet."""
    reference = _in_registry(image)
    settings = i.settings_with(cert_dir=cert_dir, authfile=authfile)

    from vmrun.run.images import find_briefly
    from vmrun.run.remember import Memory

    with (
        _shown(i.image_options(settings, plain_http=plain_http), quiet=quiet) as options,
        find_briefly(reference, settings.directories, options) as found,
    ):
        fetched = found.fetch()
        moved = found.transfer
    Memory(settings.directories).pulled(fetched)
    if json:
        print_json({"reference": reference, "digest": fetched.digest, "transfer": moved})
        return
    print(f"{reference.path}@{fetched.digest}")
    if not quiet:
        note(f"{moved.moved} blobs moved ({format_size(moved.bytes)}), {moved.present} were here")


def push_command(
    source: Annotated[str, typer.Argument(help="The image, by any transport.")],
    target: Annotated[str, typer.Argument(help="HOST[:PORT]/REPOSITORY[:TAG]")],
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Push an image to a registry as it is: its digest, and so its signatures, stay good.

    Signatures are stored beside an image; sign it where it was pushed to.
    """
    from_reference, to = parse_reference(source), _in_registry(target)
    settings = i.settings_with(cert_dir=cert_dir, authfile=authfile)

    from vmrun.image.registry.push import push_image
    from vmrun.image.registry.repository import Repository
    from vmrun.run.images import find_briefly
    from vmrun.run.remember import Memory

    with (
        _shown(i.image_options(settings, plain_http=plain_http), quiet=quiet) as options,
        find_briefly(from_reference, settings.directories, options) as found,
    ):
        fetched = found.fetch()
        pushed = push_image(fetched, Repository(to, options.registry, push=True))
    Memory(settings.directories).pushed(fetched, pushed)
    if json:
        print_json(pushed)
        return
    print(f"{pushed.reference}@{pushed.digest}")
    moved = pushed.transfer
    if not quiet:
        note(f"{moved.moved} blobs moved ({format_size(moved.bytes)}), {moved.present} were there")


class _Line:
    """Progress as one line of a terminal; threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._expected = 0
        self._done = 0
        self._shown = 0.0

    def expect(self, size: int) -> None:
        """About ``size`` more bytes are going to move."""
        with self._lock:
            self._expected += size

    def advance(self, size: int) -> None:
        """``size`` more bytes have moved."""
        with self._lock:
            self._done += size
            if time.monotonic() - self._shown >= _EVERY:
                self._shown = time.monotonic()
                # A blob that was sent once more counts twice.
                done = min(self._done, self._expected)
                self._write(f"{format_size(done)} of {format_size(self._expected)}")

    def clear(self) -> None:
        """Leave the terminal as it was."""
        with self._lock:
            if self._shown:
                self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


@contextmanager
def _shown(options: ImageOptions, *, quiet: bool) -> Iterator[ImageOptions]:
    """The options with progress on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield options
        return
    line = _Line()
    try:
        yield replace(options, registry=replace(options.registry, progress=line))
    finally:
        line.clear()


def _in_registry(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.transport is not Transport.DOCKER:
        raise UsageError(
            f"{text[:200]!r} is not in a registry", hint="write HOST[:PORT]/REPOSITORY[:TAG]"
        )
    return reference
