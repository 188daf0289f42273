"""Telling runs what to do: ``stop``, ``kill``, ``pause``, ``unpause`` and ``wait``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli.run_words import exit_status
from vmrun.cli.runs import Book, Json, SomeRuns, each, open_book, over
from vmrun.model.errors import StateError, UsageError
from vmrun.model.signals import signal_number

if TYPE_CHECKING:
    from vmrun.model.run_record import RunRecord

LONGEST_STOP = 3600
_MARGIN = 90.0
"""Seconds that a stop may take beyond its grace: SIGKILL, and the answer."""
_AGAIN = 0.2


def stop_command(
    runs: SomeRuns,
    grace: Annotated[
        int | None,
        typer.Option(
            "--time",
            "-t",
            help="Seconds until it is killed; default: its --stop-timeout.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Ask runs to end, kill those that do not, and wait until their guests are gone."""
    if grace is not None and not 0 <= grace <= LONGEST_STOP:
        raise UsageError(f"--time {grace} is not possible", hint=f"0 to {LONGEST_STOP} seconds")
    book = open_book()
    each(runs, lambda selector: stop_run(book, selector, grace), json=json)


def stop_run(book: Book, selector: str, grace: int | None) -> dict[str, Any]:
    """Ask one run to end, and wait until it and its guest have. Raises :class:`StateError`."""
    record = book.find(selector)
    seen = book.seen(record)
    if seen.kept_until:
        return _stopped(book, record)
    if not seen.lives:
        book.settle_down(record)
        return _stopped(book, record)
    try:
        patience = LONGEST_STOP if grace is None else grace
        book.ask(record, "stop", timeout=patience + _MARGIN, grace=grace)
    except StateError:
        # It may have ended by itself, with its guest, before it could answer; or its guest is only
        # being made, and its owner understands a signal.
        now = book.runs.read(record.run_id)
        if now is not None and (seen := book.seen(record)).lives and not now.ended:
            if record.guest != record.run_id:
                raise
            from vmrun.run.owner import ask_owner

            ask_owner(book.guest(record), seen.owner)
    book.settle_down(record)
    return _stopped(book, record)


def _stopped(book: Book, record: RunRecord) -> dict[str, Any]:
    last = book.runs.read(record.run_id) or record
    return {"run_id": record.run_id, "name": record.name, "exit_status": last.exit_status}


def kill_command(
    runs: SomeRuns,
    signal: Annotated[
        str, typer.Option("--signal", "-s", help="Its name or number.", show_default=True)
    ] = "KILL",
    json: Json = False,
) -> None:
    """Send runs a signal."""
    number = signal_number(signal)
    book = open_book()
    _tell(book, runs, "signal", json=json, signal=number)


def pause_command(runs: SomeRuns, json: Json = False) -> None:
    """Stop runs where they are: their guests' processors do not run any more."""
    _tell(open_book(), runs, "pause", json=json)


def unpause_command(runs: SomeRuns, json: Json = False) -> None:
    """Let paused runs go on."""
    _tell(open_book(), runs, "unpause", json=json)


def _tell(book: Book, selectors: list[str], op: str, *, json: bool, **fields: Any) -> None:
    def act(selector: str) -> dict[str, Any]:
        record = book.must_run(selector)
        book.ask(record, op, **fields)
        return {"run_id": record.run_id, "name": record.name}

    each(selectors, act, json=json)


def wait_command(runs: SomeRuns, json: Json = False) -> None:
    """Wait until runs have ended, and print their exit statuses."""
    book = open_book()

    def act(selector: str) -> dict[str, Any]:
        record = book.find(selector)
        status = wait_for(book, record)
        return {"run_id": record.run_id, "name": record.name, "exit_status": status}

    each(runs, act, json=json, line=lambda _, fields: str(fields["exit_status"]))


def wait_for(book: Book, record: RunRecord) -> int:
    """The exit status of a run, once it has ended and its guest is gone; however long that
    takes."""
    told: int | None = None
    while True:
        now = book.runs.read(record.run_id)
        if now is None and told is not None:
            return told
        if now is None:
            raise StateError(
                f"run {record.name!r} has ended, and its record is gone",
                hint="leave --rm out, and remove it when its status was read",
            )
        seen = book.seen(now)
        if seen.kept_until:
            raise StateError(
                f"run {record.name!r} has failed; its guest is only kept",
                hint=f"vmrun rm {record.name}",
            )
        if over(seen):
            book.settle_down(now)
            return exit_status(seen)
        if seen.lives:
            told = _ask(book, record)
        # Not up yet, or just ended: then its record says so in a moment. What has died under a
        # restart policy may come back.
        time.sleep(_AGAIN)


def _ask(book: Book, record: RunRecord) -> int | None:
    """What its owner says when it has ended; None when nobody does."""
    from vmrun.supervisor.client import ask, dial

    try:
        line = dial(book.guest(record))
    except StateError:
        return None
    try:
        status = ask(line, "wait", timeout=None, run=record.run_id).get("status")
    except StateError:
        return None
    finally:
        line.close()
    return status if type(status) is int else None
