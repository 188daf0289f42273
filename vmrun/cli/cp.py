"""``vmrun cp``: files between this host and the container of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from vmrun.cli.copy_place import STREAM, Copied, parse_place
from vmrun.cli.output import note, print_json
from vmrun.cli.runs import interruptible, open_book
from vmrun.model.errors import StateError, UsageError


def cp_command(
    source: Annotated[
        str,
        typer.Argument(
            help="RUN:PATH, a path of this host, or - for a tar on stdin.",
            metavar="SRC",
            show_default=False,
        ),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            help="A path of this host, - for a tar on stdout, or RUN:PATH.",
            metavar="DEST",
            show_default=False,
        ),
    ],
    archive: Annotated[
        bool,
        typer.Option(
            "--archive", "-a", help="Keep uid and gid; into a container: as its root, too."
        ),
    ] = False,
    follow_link: Annotated[
        bool, typer.Option("--follow-link", "-L", help="Copy what SRC links to, if it is a link.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing of what was copied.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was copied as JSON.")] = False,
) -> None:
    """Copy files between this host and a running container, as docker cp does."""
    from_place, to_place = parse_place(source), parse_place(destination)
    if bool(from_place.run) == bool(to_place.run):
        raise UsageError(
            "one of SRC and DEST must be RUN:PATH, and the other not",
            hint="vmrun cp RUN:/srv/result.txt .",
        )
    inwards = bool(to_place.run)
    if json and destination == STREAM:
        raise UsageError("--json and a tar on stdout exclude each other", hint="name a directory")

    from vmrun.cli.copy_in import copy_in
    from vmrun.cli.copy_out import copy_out

    book = open_book()
    record = book.must_run(to_place.run or from_place.run)
    copy = copy_in if inwards else copy_out
    with interruptible():
        copied = copy(
            book.guest(record),
            record.run_id,
            from_place,
            to_place,
            keep=archive,
            follow=follow_link,
        )
    if json:
        print_json(
            {
                "run": record.run_id,
                "name": record.name,
                "direction": "in" if inwards else "out",
                "entries": copied.entries,
                "bytes": copied.size,
                "left_out": copied.left_out,
            }
        )
    elif not quiet:
        note(f"copied {_what(copied)} to {destination}")
    if copied.left_out:
        raise StateError(
            f"{copied.left_out} of what was asked for was left out (above)",
            hint=f"as a tar it is complete: vmrun cp {source} -",
        )


def _what(copied: Copied) -> str:
    if not copied.entries:
        return f"a tar of {copied.size} bytes"
    entries = "1 entry" if copied.entries == 1 else f"{copied.entries} entries"
    return f"{entries} of {copied.size} bytes"
