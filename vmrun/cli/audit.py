"""``vmrun audit``: what happened here, and whether what runs may still run."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections import deque
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.key import PassphraseFile, load_private_key
from vmrun.cli.output import as_json, note, print_json, table
from vmrun.model.errors import StateError, UsageError
from vmrun.model.quantity import parse_duration
from vmrun.settings import load_settings

if TYPE_CHECKING:
    from vmrun.journal.journal import Head

app = typer.Typer(
    help="What happened here, and whether what runs may still run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("show")
def show_command(
    event: Annotated[
        str | None, typer.Option(help="Only this event, e.g. run.start.", show_default=False)
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            help="Only entries about this image: its digest, or 6 digits of it and more.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Only what is not older: 2h, 7d, or a time such as 2026-05-01T12:00:00Z.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="Only entries about this run: its id, or 4 digits of it and more.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Only entries about this tenant.", show_default=False)
    ] = None,
    last: Annotated[
        int | None, typer.Option("-n", help="Only the last so many.", min=1, show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Print the journal, oldest first. Fails where its chain is broken."""
    from vmrun.journal.journal import Journal

    begins = _digits(digest) if digest is not None else ""
    of_run = _run_digits(run) if run is not None else ""
    earliest = _moment(since, time.time()) if since is not None else ""
    found = deque(
        (
            entry
            for entry in Journal(load_settings().directories.journal).entries()
            if event in (None, entry.event)
            and entry.time >= earliest
            and entry.fields.get("digest", "").rpartition(":")[2].startswith(begins)
            and entry.fields.get("run", "").startswith(of_run)
            and tenant in (None, entry.fields.get("tenant", ""))
        ),
        maxlen=last,
    )
    if json:
        print_json(tuple(found))
        return
    for entry in found:
        fields = " ".join(f"{key}={_word(value)}" for key, value in entry.fields.items() if value)
        print(f"{entry.seq} {entry.time} {_word(entry.user)} {entry.event} {fields}")


@app.command("verify")
def verify_command(
    expect: Annotated[
        str | None,
        typer.Option(help="A head printed earlier, SEQ:HASH: it must still be there."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file of 'vmrun audit checkpoint': signed by --key, and still true. Repeatable.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The public key that signed the checkpoints.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Check the journal's chain, and print its head: keep that somewhere else."""
    from vmrun.journal.journal import Head
    from vmrun.run.checkpoint import verify_journal
    from vmrun.trust.files import load_key_file

    if bool(checkpoint) != (key is not None):
        raise UsageError(
            "--checkpoint and --key go together",
            hint="vmrun audit verify --checkpoint FILE --key KEY.pub",
        )
    head, said = verify_journal(
        load_settings().directories,
        checkpoint or (),
        load_key_file(key) if key is not None else None,
        Head.parse(expect) if expect is not None else None,
    )
    if json:
        print_json({**as_json(head), "checkpoints": said})
    else:
        print(head)
    for one in said:
        note(f"entry {one.seq} is there as {one.host} had it at {one.time}")
    _note_torn(head)


@app.command("checkpoint")
def checkpoint_command(
    key: Annotated[
        Path,
        typer.Option("--key", help="The private key, as 'vmrun key generate' or cosign wrote it."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write it to this file, which must not exist, not to stdout.", show_default=False
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Sign where the journal's chain ends now. Keep that where nobody of this host can write."""
    from vmrun.run.checkpoint import make_checkpoint, must_be_new, write_checkpoint

    directories = load_settings().directories
    if output is not None:
        must_be_new(output)
    private = load_private_key(key, passphrase_file)
    checkpoint, envelope = make_checkpoint(directories, private)
    if output is None:
        print(envelope.decode(), end="")
    else:
        write_checkpoint(output, envelope)
        if json:
            fields = {**as_json(checkpoint), "key": private.public.key_id, "file": output}
            print_json(fields)
        else:
            print(f"{checkpoint.seq}:{checkpoint.hash}")
    note(f"signed entry {checkpoint.seq} with key {private.public.key_id}")


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="Where to, or - for stdout.", allow_dash=True)],
) -> None:
    """Copy the journal's lines, checked, and say its head; nothing if its chain is broken."""
    from vmrun.journal.journal import Journal

    journal = Journal(load_settings().directories.journal)
    try:
        # Whole before any of it is shown or put in the place of an older copy.
        with tempfile.TemporaryFile() as spool:
            head = journal.verify(copy=spool.write)
            spool.seek(0)
            if str(file) == "-":
                shutil.copyfileobj(spool, sys.stdout.buffer)
            else:
                with file.open("wb") as out:
                    shutil.copyfileobj(spool, out)
    except OSError as error:
        raise StateError(
            f"cannot write {str(file)!r}: {error.strerror or error}", hint="choose another file"
        ) from None
    note(f"head {head}")
    _note_torn(head)


def _note_torn(head: Head) -> None:
    if head.torn:
        note(f"after entry {head.seq} stands half a line: a crash left it, or the journal was cut")


def _digits(digest: str) -> str:
    digits = digest.rpartition(":")[2]
    if not re.fullmatch("[0-9a-f]{6,128}", digits):
        raise UsageError(
            f"--digest: not the beginning of a digest: {digest[:80]!r}",
            hint="write 6 lower-case hex digits or more",
        )
    return digits


def _run_digits(run: str) -> str:
    if not re.fullmatch("[0-9a-f]{4,12}", run):
        raise UsageError(
            f"--run: not the beginning of a run's id: {run[:80]!r}",
            hint="write 4 lower-case hex digits or more",
        )
    return run


def _moment(since: str, now: float) -> str:
    """As entries write it, so that texts can be compared."""
    try:
        if re.fullmatch(r"[0-9.]+(?:ms|s|m|h|d)?", since):
            at = datetime.fromtimestamp(now - parse_duration(since, option="--since"), UTC)
        else:
            at = datetime.fromisoformat(since).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"--since: not a time: {since[:80]!r}",
            hint="write 2h, 7d, or a time such as 2026-05-01T12:00:00Z",
        ) from None
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _word(text: str) -> str:
    """One word, or a quoted one: values come from images, too, and must neither begin a line nor
    reach a terminal as anything but text."""
    if text.isprintable() and not set(text) & set(' "\\'):
        return text
    return dumps(text, ensure_ascii=not text.isprintable())


@app.command("running")
def running_command(
    policy: i.Policy = None,
    trust_rules: i.TrustRules = None,
    json: Json = False,
) -> None:
    """Compare what runs now with what is revoked by now. Fails if anything is."""
    settings = i.settings_with(policy=policy, trust_rules=trust_rules)

    from vmrun.run.audit import running

    found = running(settings.directories, settings.trust_files)
    if json:
        print_json([as_json(item) for item in found])
    else:
        rows = [(g.name, g.run_id, g.image, g.revoked or "no") for g in found]
        print(table(rows, header=("name", "run", "image", "revoked")))
    if any(item.revoked for item in found):
        raise typer.Exit(1)
