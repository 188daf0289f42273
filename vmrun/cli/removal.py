"""``vmrun rm``: records and logs of runs that have ended, guests that were kept, and with force
runs that live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli.output import note
from vmrun.cli.runs import Book, Json, SomeRuns, each, open_book
from vmrun.model.errors import StateError
from vmrun.model.signals import KILL

if TYPE_CHECKING:
    from vmrun.model.run_record import RunRecord

_KILL_TIMEOUT = 60.0


def rm_command(
    runs: SomeRuns,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Those that run, too: they are killed.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove runs that have ended, with their logs, and guests that --keep has kept."""
    book = open_book()
    each(runs, lambda selector: _remove(book, selector, force=force), json=json)


def _remove(book: Book, selector: str, *, force: bool) -> dict[str, Any]:
    try:
        record = book.find(selector)
    except StateError as error:
        return _without_record(book, selector, error)
    seen = book.seen(record)
    if seen.kept_until:
        _remove_guest(book, record.run_id)
    elif seen.lives:
        if not force:
            raise StateError(
                f"run {record.name!r} is {seen.state}",
                hint=f"vmrun stop {record.name}, or vmrun rm --force",
            )
        _kill(book, record)
    elif not record.ended:
        _reclaim(book)  # its guest has lost its owner, and may still run
    book.settle_down(record)
    return _forget(book, record.run_id, record.name)


def _kill(book: Book, record: RunRecord) -> None:
    """End it at once; its guest goes with it, unless it shares one."""
    try:
        book.ask(record, "signal", timeout=_KILL_TIMEOUT, signal=KILL)
        book.ask(record, "wait", timeout=_KILL_TIMEOUT)
    except StateError:
        now = book.runs.read(record.run_id)
        if now is None or now.ended or not book.seen(now).lives:
            return
        raise


def _without_record(book: Book, selector: str, error: StateError) -> dict[str, Any]:
    """A kept guest of whose run there is no record, or a record that is damaged."""
    from vmrun.run.state import find
    from vmrun.supervisor.records import RUN_ID

    try:
        _, intent = find(book.directories, selector)
    except StateError:
        damaged = RUN_ID.fullmatch(selector) and book.runs.folder(selector).is_dir()
        if not damaged:
            raise error from None
        return _forget(book, selector, selector)
    _remove_guest(book, intent.run_id)
    return _forget(book, intent.run_id, intent.name)


def _remove_guest(book: Book, run_id: str) -> None:
    from vmrun.run.state import find, take
    from vmrun.run.teardown import remove_guest

    path, intent = find(book.directories, run_id)
    left = [item for item in remove_guest(take(path, intent)) if not item.gone]
    if left:
        raise StateError(
            f"could not remove all of {intent.name}: "
            + ", ".join(f"{item.kind} {item.name}" for item in left),
            hint="the next vmrun command tries again",
        )


def _reclaim(book: Book) -> None:
    from vmrun.run.reclaim import reclaim_all

    reclaim_all(book.directories, note)


def _forget(book: Book, run_id: str, name: str) -> dict[str, Any]:
    if not book.runs.remove(run_id):
        raise StateError(
            f"cannot remove {book.runs.folder(run_id)}", hint="check who may write there"
        )
    return {"run_id": run_id, "name": name}
