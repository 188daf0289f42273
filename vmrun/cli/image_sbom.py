"""``vmrun image sbom``."""

from __future__ import annotations

import os
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import note, print_json, table
from vmrun.image.reference import parse_reference
from vmrun.model.errors import StateError


class Format(StrEnum):
    """How packages are printed."""

    CYCLONEDX = "cyclonedx"
    TABLE = "table"


def sbom_command(
    image: Annotated[str, typer.Argument(help="The image, by any transport.")],
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.CYCLONEDX,
    output: Annotated[Path | None, typer.Option(help="Write there instead of stdout.")] = None,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    json: Annotated[bool, typer.Option("--json", help="Short for --format cyclonedx.")] = False,
) -> None:
    """List the packages in an image, as CycloneDX 1.6 JSON or as a table.

    SOURCE_DATE_EPOCH, where it is set, is the document's time.
    """
    reference = parse_reference(image)
    settings = i.settings_with(cert_dir=cert_dir, authfile=authfile)

    from vmrun.run.images import find
    from vmrun.scan.catalogue.read import catalogue
    from vmrun.scan.cyclonedx import cyclonedx

    options = i.image_options(settings, plain_http=plain_http)
    with (
        tempfile.TemporaryDirectory(prefix="vmrun-sbom.") as scratch,
        find(reference, Path(scratch) / "image", settings.directories, options) as found,
    ):
        fetched = found.fetch()
        listed = catalogue(fetched)
    for text in listed.unreadable:
        note(f"not read: {text}")
    if form is Format.TABLE and not json:
        rows = [(p.kind.value, p.name, p.version, p.source, p.path) for p in listed.packages]
        print(table(rows, header=("kind", "name", "version", "source", "recorded in")))
        return
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    created = float(epoch) if epoch.isdecimal() and len(epoch) < 12 else time.time()
    document = cyclonedx(listed, fetched, created=created)
    if output is None:
        print_json(document)
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            print_json(document, file)
    except OSError as error:
        raise StateError(f"cannot write {output}: {error.strerror}") from None
