"""``vmrun image ls``, ``inspect``, ``rm`` and ``prune``: what this host knows of images."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.output import as_json, note, print_json, table
from vmrun.model.errors import StateError, UsageError
from vmrun.model.quantity import format_age, format_size
from vmrun.settings import load_settings

if TYPE_CHECKING:
    from vmrun.image.records import ImageRecords
    from vmrun.model.record import ImageRecord

_BUSY = "blobs were left, because the store is in use; try 'vmrun image prune' later"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Image = Annotated[str, typer.Argument(help="A digest, its first 6 digits or more, or a reference.")]


def ls_command(
    digests: Annotated[bool, typer.Option("--digests", help="Print whole digests.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print digests only.")] = False,
    json: Json = False,
) -> None:
    """List images that were pulled, pushed, verified, scanned or run here."""
    from vmrun.image.records import ImageRecords
    from vmrun.run.state import alive

    directories = load_settings().directories
    records = ImageRecords(directories.images).all()
    running: dict[str, list[str]] = {}
    for intent in alive(directories):
        running.setdefault(intent.image_digest, []).append(intent.name)
    if json:
        print_json([{**as_json(r), "running": running.get(str(r.digest), [])} for r in records])
        return
    if quiet:
        for record in records:
            print(record.digest)
        return
    rows = [_row(record, running.get(str(record.digest), []), whole=digests) for record in records]
    header = ("image", "digest", "size", "pushed by", "signed by", "scan", "runs")
    print(table(rows, header=header))


def inspect_command(image: Image) -> None:
    """Print all that is known of an image as JSON."""
    from vmrun.image.records import ImageRecords

    print_json(_find(ImageRecords(load_settings().directories.images), image))


def rm_command(
    image: Image,
    force: Annotated[bool, typer.Option("--force", help="Even while it runs.")] = False,
) -> None:
    """Forget an image and delete what only it needs; running guests keep their own copy."""
    from vmrun.image.records import ImageRecords
    from vmrun.image.store import ImageStore
    from vmrun.run.remember import Memory
    from vmrun.run.state import alive

    directories = load_settings().directories
    records = ImageRecords(directories.images)
    record = _find(records, image)
    users = [i.name for i in alive(directories) if i.image_digest == str(record.digest)]
    if users and not force:
        raise StateError(
            f"{record.digest} runs in {', '.join(users)}", hint="end those runs, or use --force"
        )
    Memory(directories).removes(record, running=users)
    freed = records.remove(record, ImageStore(directories.images))
    print(record.digest)
    note(f"freed {format_size(freed.bytes)}")
    if freed.busy:
        note(_BUSY)


def prune_command(json: Json = False) -> None:
    """Delete blobs that no image needs, and what interrupted downloads have left."""
    from vmrun.image.records import ImageRecords
    from vmrun.image.store import ImageStore

    directories = load_settings().directories
    freed = ImageRecords(directories.images).prune(ImageStore(directories.images))
    if json:
        print_json({"freed": freed.bytes, "busy": freed.busy})
        return
    print(f"freed {format_size(freed.bytes)}")
    if freed.busy:
        note(_BUSY)


def _find(records: ImageRecords, image: str) -> ImageRecord:
    """By what was typed, else by the full reference that it means."""
    from vmrun.image.reference import parse_reference
    from vmrun.run.images import absolute

    selectors = [image]
    with suppress(UsageError):
        selectors.append(str(absolute(parse_reference(image))))
    return records.find(*selectors)


def _row(record: ImageRecord, running: list[str], *, whole: bool) -> tuple[str, ...]:
    now = time.time()
    signers = dict.fromkeys(claim.key_id[7:19] for claim in record.claims)
    scan = ""
    if record.checkup is not None:
        scan = f"{record.checkup.verdict} {format_age(now - record.checkup.at)} ago"
    pushed = record.pushed.user if record.pushed else ""
    if record.pushed and record.pushed.account:
        pushed += f" as {record.pushed.account}"
    return (
        record.seen[0].reference if record.seen else "",
        str(record.digest) if whole else record.digest.short,
        format_size(record.size) if record.size else "",
        pushed,
        " ".join(signers),
        scan,
        f"in {', '.join(running)}" if running else str(record.runs or ""),
    )
