"""``vmrun events``: what happens to runs, guests, networks, tenants and volumes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.moment import moment
from vmrun.cli.output import as_json
from vmrun.cli.run_words import printable
from vmrun.cli.runs import Book, Json, interruptible, open_book
from vmrun.model.errors import UsageError

if TYPE_CHECKING:
    from vmrun.journal.entry import Entry

KINDS = ("run", "guest", "network", "tenant", "volume")
_FILTERS = ("event", "type", "run", "tenant")
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class EventFilter:
    """One ``KEY=VALUE``; of one key any may hold, of all keys one must."""

    key: str
    value: str

    def holds(self, entry: Entry) -> bool:
        """Whether the entry is meant."""
        match self.key:
            case "event":
                return entry.event == self.value
            case "type":
                return entry.event.partition(".")[0] == self.value
            case "run":
                run, name = entry.fields.get("run", ""), entry.fields.get("name", "")
                return bool(run) and (run.startswith(self.value) or name == self.value)
        return entry.fields.get("tenant", "") == self.value


def events_command(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(help="Only what is not older: 10m, or a time.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Only what is older: 10m, or a time.", show_default=False),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="event=, type=, run= or tenant=. Repeatable.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print what happened to runs and what they live on, from the journal, oldest first."""
    first, end = moment(since, option="--since"), moment(until, option="--until")
    wanted = [parse_filter(text) for text in filters or ()]
    book = open_book()
    with interruptible():
        for entry in _entries(book, follow=follow):
            if end and entry.time >= end:
                return
            if entry.time >= first and _meant(entry, wanted):
                print(dumps(as_json(entry)) if json else _line(entry), flush=True)


def _entries(book: Book, *, follow: bool) -> Iterator[Entry]:
    from vmrun.journal.follow import follow as follow_on
    from vmrun.journal.journal import Journal

    directory = book.directories.journal
    last = None
    for entry in Journal(directory).entries():
        last = entry
        yield entry
    if follow:
        yield from follow_on(directory, last, lambda: time.sleep(_POLL))


def _meant(entry: Entry, wanted: list[EventFilter]) -> bool:
    if entry.event.partition(".")[0] not in KINDS:
        return False
    keys = {one.key for one in wanted}
    return all(any(one.holds(entry) for one in wanted if one.key == key) for key in keys)


def parse_filter(text: str) -> EventFilter:
    """Raises :class:`UsageError`."""
    key, equals, value = text.partition("=")
    if not equals or not value or key not in _FILTERS:
        raise UsageError(
            f"--filter: not a filter: {text[:80]!r}",
            hint=f"KEY=VALUE with one of: {', '.join(_FILTERS)}",
        )
    if key == "type" and value not in KINDS:
        raise UsageError(f"--filter: no type {value[:40]!r}", hint=f"one of: {', '.join(KINDS)}")
    return EventFilter(key, value)


def _line(entry: Entry) -> str:
    fields = " ".join(f"{key}={_word(value)}" for key, value in entry.fields.items() if value)
    return f"{entry.time} {entry.event} {fields}".rstrip()


def _word(text: str) -> str:
    """One word, or a quoted one: values come from images, too."""
    return dumps(printable(text)) if set(text) & set(' "\\') else printable(text)
