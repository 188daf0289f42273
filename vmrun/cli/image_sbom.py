"""``vmrun image sbom``."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import as_json, note, table
from vmrun.image.reference import parse_reference
from vmrun.model.errors import StateError, UsageError

_EPOCH_DIGITS = 11  # more than these are beyond the year 9999


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
    reference, created = parse_reference(image), _created()
    settings = i.settings_with(cert_dir=cert_dir, authfile=authfile)

    from vmrun.run.images import find_briefly
    from vmrun.scan.catalogue.read import catalogue
    from vmrun.scan.cyclonedx import cyclonedx

    options = i.image_options(settings, plain_http=plain_http)
    with find_briefly(reference, settings.directories, options) as found:
        fetched = found.fetch()
        listed = catalogue(fetched)
    for text in listed.unreadable:
        note(f"not read: {text}")
    for text in listed.unseen:
        note(f"not looked at: {text}")
    if form is Format.TABLE and not json:
        rows = [
            (p.kind.value, p.name, p.version, p.source, p.architecture, p.path)
            for p in listed.packages
        ]
        header = ("kind", "name", "version", "source", "architecture", "recorded in")
        text = table(rows, header=header)
    else:
        text = dumps(as_json(cyclonedx(listed, fetched, created=created)), indent=2)
    if output is None:
        print(text)
        return
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise StateError(
            f"cannot write {str(output)!r}: {error.strerror}", hint="name another file"
        ) from None


def _created() -> float:
    """The document's time (reproducible-builds.org, SOURCE_DATE_EPOCH), or now."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not epoch:
        return time.time()
    if not (epoch.isascii() and epoch.isdecimal()) or len(epoch) > _EPOCH_DIGITS:
        raise UsageError(
            f"SOURCE_DATE_EPOCH {epoch[:80]!r} is no number of seconds since 1970",
            hint="unset it, or set it to one, e.g. SOURCE_DATE_EPOCH=$(date +%s)",
        )
    return float(epoch)
