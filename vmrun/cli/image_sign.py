"""``vmrun image sign``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.key import PassphraseFile, load_private_key
from vmrun.cli.output import note, print_json
from vmrun.image.reference import parse_reference
from vmrun.model.errors import UsageError
from vmrun.model.trust import SignatureFormat


class Format(StrEnum):
    """Which of cosign's formats to write."""

    SIMPLE = "simple"
    BUNDLE = "bundle"
    BOTH = "both"


_FORMATS = {
    Format.SIMPLE: (SignatureFormat.SIMPLE_SIGNING,),
    Format.BUNDLE: (SignatureFormat.BUNDLE,),
    Format.BOTH: tuple(SignatureFormat),
}

Key = Annotated[
    Path, typer.Option("--key", help="The private key, as 'vmrun key generate' or cosign wrote it.")
]


def sign_command(
    image: Annotated[str, typer.Argument(help="A registry reference or oci:DIR[:TAG].")],
    key: Key,
    identity: Annotated[
        str | None,
        typer.Option(help="HOST/REPOSITORY:TAG to sign as; default: the reference itself."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="simple: cosign 1 and 2; bundle: cosign 3.")
    ] = Format.BOTH,
    annotation: Annotated[
        list[str] | None, typer.Option("--annotation", "-a", help="KEY=VALUE to sign along.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sign an image by its digest, and store the signature beside it."""
    reference = parse_reference(image)
    settings = i.settings_with(cert_dir=cert_dir, authfile=authfile)

    from vmrun.run.remember import Memory
    from vmrun.run.signing import sign

    signed = sign(
        reference,
        load_private_key(key, passphrase_file),
        settings.directories,
        i.image_options(settings, plain_http=plain_http),
        identity=identity,
        formats=_FORMATS[form],
        annotations=dict(_pair(text) for text in annotation or ()),
    )
    Memory(settings.directories).signed(signed.identity, signed.digests, signed.key_id)
    if json:
        print_json(signed)
        return
    print(f"{signed.identity}@{signed.digests[-1]}")
    note(f"signed {len(signed.digests)} manifest(s) of {reference} with key {signed.key_id}")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--annotation {text!r}: not KEY=VALUE", hint="write -a team=payments")
    return key, value
