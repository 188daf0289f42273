"""``vmrun gc``: remove what dead runs have left."""

from __future__ import annotations

from typing import Annotated

import typer

from vmrun.cli.output import print_json, table
from vmrun.cli.run_words import printable
from vmrun.cli.runs import Json, open_book


def gc_command(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove what dead runs have left on this host, and prove that it is gone.

    Ends with 0 when nothing remains, and with 1 otherwise.
    """
    from vmrun.run.leftovers import collect, find_leftovers

    directories = open_book().directories
    if dry_run:
        found = find_leftovers(directories)
        if json:
            print_json(found)
        elif found:
            rows = [(left.kind, left.run_id, printable(left.name)) for left in found]
            print(table(rows, header=("kind", "run id", "name")))
        if found:
            raise typer.Exit(1)
        return
    done = collect(directories)
    if json:
        print_json(
            {
                "guests": [
                    {"run_id": run_id, "removed": receipt.removed, "clean": receipt.clean}
                    for run_id, receipt in done.receipts
                ],
                "runs": [{"run_id": r.run_id, "name": r.name} for r in done.settled],
                "others": done.others,
                "clean": done.clean,
            }
        )
    else:
        for run_id, receipt in done.receipts:
            print(f"guest {run_id}")
            for item in receipt.removed:
                print(f"  {_word(gone=item.gone)} {item.kind} {printable(item.name)}")
        for record in done.settled:
            print(f"run {record.name} ({record.run_id}) is recorded as dead")
        for item in done.others:
            print(f"{_word(gone=item.gone)} {item.kind} {printable(item.name)}")
    if not done.clean:
        raise typer.Exit(1)


def _word(*, gone: bool) -> str:
    return "removed" if gone else "could not remove"
