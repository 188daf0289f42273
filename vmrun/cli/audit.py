"""``vmrun audit``: what happened here, and whether what runs may still run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import as_json, note, print_json, table
from vmrun.model.errors import StateError
from vmrun.settings import load_settings

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
        str | None, typer.Option(help="Only entries about this image.", show_default=False)
    ] = None,
    last: Annotated[
        int | None, typer.Option("-n", help="Only the last so many.", min=1, show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Print the journal, oldest first."""
    from vmrun.journal.journal import Journal

    found = [
        entry
        for entry in Journal(load_settings().directories.journal).entries()
        if event in (None, entry.event) and digest in (None, entry.fields.get("digest"))
    ]
    found = found[-last:] if last else found
    if json:
        print_json(found)
        return
    for entry in found:
        fields = " ".join(f"{k}={v}" for k, v in entry.fields.items() if v)
        print(f"{entry.seq} {entry.time} {entry.user} {entry.event} {fields}")


@app.command("verify")
def verify_command(
    expect: Annotated[
        str | None,
        typer.Option(help="A head printed earlier, SEQ:HASH: it must still be there."),
    ] = None,
) -> None:
    """Check the journal's chain, and print its head: keep that somewhere else."""
    from vmrun.journal.journal import Head, Journal

    journal = Journal(load_settings().directories.journal)
    print(journal.verify(Head.parse(expect) if expect else None))


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="Where to, or - for stdout.", allow_dash=True)],
) -> None:
    """Copy the journal's lines, once its chain has been checked."""
    from vmrun.journal.journal import Journal

    journal = Journal(load_settings().directories.journal)
    head = journal.verify()
    lines = journal.path.read_bytes() if journal.path.exists() else b""
    if str(file) == "-":
        sys.stdout.buffer.write(lines)
    else:
        try:
            file.write_bytes(lines)
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from None
    note(f"head {head}")


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
