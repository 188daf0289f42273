"""``vmrun inspect`` and ``vmrun port``: all that is known of runs."""

from __future__ import annotations

import json as json_format
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli.output import print_error, print_json
from vmrun.cli.ps import run_fields
from vmrun.cli.run_words import endpoint
from vmrun.cli.runs import Book, Json, Run, SomeRuns, open_book
from vmrun.model.errors import StateError, UsageError, VmrunError

if TYPE_CHECKING:
    from vmrun.run.survey import Seen

_LOOK = 15.0
_VERDICT = "verdict.json"
_LARGEST = 16 << 20


def inspect_command(
    runs: SomeRuns,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, which it does anyway.")] = False,
) -> None:
    """Print all that is known of runs, as JSON: record, verdict, and what is read live."""
    book = open_book()
    found: list[dict[str, Any]] = []
    failed = False
    for selector in runs:
        try:
            found.append(_fields(book, book.seen(book.find(selector))))
        except VmrunError as error:
            failed = True
            print_error(error)
    print_json(found)
    if failed:
        raise typer.Exit(1)


def _fields(book: Book, seen: Seen) -> dict[str, Any]:
    from vmrun.supervisor.logs import log_files

    record = seen.record
    folder = book.runs.folder(record.run_id)
    files = log_files(folder)
    return {
        **run_fields(seen),
        "guest_directory": str(book.guest(record)) if seen.lives else "",
        "log": {
            "files": [str(path) for path in files],
            "bytes": sum(path.stat().st_size for path in files),
        },
        "verdict": _verdict(book, record.run_id),
        "live": _live(book, seen),
    }


def _verdict(book: Book, run_id: str) -> dict[str, Any] | None:
    """Why its image may run, as it was written down when that was decided."""
    path = book.runs.folder(run_id) / _VERDICT
    try:
        with path.open("rb") as file:
            verdict = json_format.loads(file.read(_LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"cannot read {path}: {error}", hint="its run started long ago") from None
    if not isinstance(verdict, dict):
        raise StateError(f"{path} is damaged", hint=f"vmrun rm {run_id}")
    return verdict


def _live(book: Book, seen: Seen) -> dict[str, Any] | None:
    """Counters read now; None where there is nothing to read them of, and why not if that
    failed."""
    from vmrun.model.run_record import RunState

    if seen.kept_until or seen.state is not RunState.RUNNING:
        return None
    try:
        stats = book.ask(seen.record, "stats", timeout=_LOOK).get("stats")
    except VmrunError as error:
        return {"error": error.message}
    return {**stats, "error": ""} if isinstance(stats, dict) else {"error": "no answer"}


def port_command(
    run: Run,
    port: Annotated[
        str | None,
        typer.Argument(help="A port of the container: 80 or 80/tcp.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Print which ports of this host lead to a run."""
    wanted = None if port is None else _port(port)
    record = open_book().find(run)
    ports = [p for p in record.ports if wanted in (None, p.container_port)]
    if wanted is not None and not ports:
        raise StateError(
            f"run {record.name!r} publishes no port {wanted}",
            hint=f"see 'vmrun port {record.name}'",
        )
    if json:
        print_json(ports)
        return
    for published in ports:
        here = endpoint(published)
        print(here if wanted is not None else f"{published.container_port}/tcp -> {here}")


def _port(text: str) -> int:
    match = re.fullmatch("([0-9]{1,5})(?:/tcp)?", text)
    if match is None or not 0 < int(match[1]) < 1 << 16:
        raise UsageError(f"not a port: {text[:40]!r}", hint="e.g. 80, or 80/tcp")
    return int(match[1])
