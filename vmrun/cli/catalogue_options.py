"""What the commands of ``vmrun catalogue`` share: directory, keys, passphrase, names."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.model.errors import UsageError

if TYPE_CHECKING:
    from vmrun.trust.catalogue_publish import Publisher
    from vmrun.trust.tuf_keys import KeyFolder

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="The published directory.", show_default=False)
]
Keys = Annotated[
    Path | None,
    typer.Option(help="Folder of private keys; default: DIR.keys.", show_default=False),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File whose first line is the passphrase of the root and targets keys.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_VARIABLE = "VMRUN_CATALOGUE_PASSPHRASE"
_LARGEST = 64 * 1024


def publisher(directory: Path, keys: Path | None, passphrase_file: Path | None) -> Publisher:
    """Who changes the catalogue in ``directory``."""
    from vmrun.trust.catalogue_publish import Publisher

    folder = key_folder(keys or beside(directory), passphrase_file)
    return Publisher(directory, folder, now=time.time())


def key_folder(place: Path, passphrase_file: Path | None) -> KeyFolder:
    """The private keys in ``place``; the passphrase is asked for when one needs it."""
    from vmrun.trust.tuf_keys import KeyFolder

    return KeyFolder(place, passphrase(passphrase_file, "keys"))


def beside(directory: Path) -> Path:
    """Where the keys of a catalogue are unless --keys says otherwise."""
    absolute = directory.absolute()
    return absolute.with_name(f"{absolute.name}.keys")


def passphrase(file: Path | None, what: str, *, confirm: bool = False) -> Callable[[], bytes]:
    """Gives it from ``file``, the environment or the terminal, asking once."""

    @cache
    def ask() -> bytes:
        if file is not None:
            try:
                text = file.read_bytes()[:_LARGEST].partition(b"\n")[0].rstrip(b"\r")
            except OSError as error:
                raise UsageError(
                    f"--passphrase-file {file}: {error.strerror}", hint="name a file you may read"
                ) from None
        elif _VARIABLE in os.environ:
            text = os.environ[_VARIABLE].encode()
        elif sys.stdin.isatty():
            prompt = f"Passphrase of the {what} of root and targets"
            said: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
            text = said.encode()
        else:
            raise UsageError(
                "keys of root and targets need a passphrase, and there is no terminal to ask at",
                hint=f"give --passphrase-file, or set {_VARIABLE}",
            )
        if not text:
            raise UsageError("the passphrase is empty", hint="choose one")
        return text

    return ask


def listed_name(text: str) -> str:
    """``HOST/REPOSITORY:TAG`` as a catalogue lists it. Raises :class:`UsageError`."""
    from vmrun.image.reference import parse_reference
    from vmrun.trust.catalogue import catalogue_name

    reference = parse_reference(text)
    name = catalogue_name(reference) if reference.digest is None else None
    if name is None:
        raise UsageError(
            f"{text[:200]!r} is not a name that a catalogue lists", hint="give HOST/REPOSITORY:TAG"
        )
    return name
