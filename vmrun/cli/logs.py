"""``vmrun logs``: what a detached run has written, while it runs and after it has ended."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.moment import moment
from vmrun.cli.output import print_error
from vmrun.cli.runs import Book, Json, Run, interruptible, open_book, over
from vmrun.model.errors import StateError, UsageError

if TYPE_CHECKING:
    from vmrun.model.run_record import RunRecord
    from vmrun.supervisor.logs import LogLine

_POLL = 0.1
_LOOK = 1.0
"""Seconds between looks at whether the run still lives."""


def logs_command(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")
    ] = False,
    tail: Annotated[
        str, typer.Option("--tail", "-n", help="Only the last so many lines, or all.")
    ] = "all",
    since: Annotated[
        str | None,
        typer.Option(help="Only what is not older: 10m, or a time.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Only what is older: 10m, or a time.", show_default=False),
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Print each line's time in front of it.")
    ] = False,
    json: Json = False,
) -> None:
    """Print what a run has written: its stdout on stdout, its stderr on stderr."""
    last = _count(tail)
    first, end = moment(since, option="--since"), moment(until, option="--until")
    book = open_book()
    record = book.find(run)
    if not record.detached:
        raise StateError(
            f"run {record.name!r} has no log: its output goes to who started it",
            hint="logs are kept of runs with --detach",
        )
    folder = book.runs.folder(record.run_id)
    writer = _Writer(json=json, timestamps=timestamps)
    ended = Ended(book, record)
    with interruptible():
        if follow:
            _follow(folder, ended, writer, first, end, last)
        else:
            from vmrun.supervisor.logs import read_log

            shown = within(read_log(folder), first, end)
            writer.write(shown if last is None else last_lines(shown, last))
    if ended.problem is not None:
        print_error(ended.problem)


def _follow(
    folder: Path, ended: Ended, writer: _Writer, first: str, end: str, last: int | None
) -> None:
    from vmrun.supervisor.logs import follow_log

    tail = None if last is None else Tail(last)

    def pause() -> None:
        """All that is there by now was read."""
        nonlocal tail
        if tail is not None:
            writer.write(tail.lines())
            tail = None
        time.sleep(_POLL)

    for line in within(follow_log(folder, ended, pause), first, end):
        if tail is None:
            writer.write((line,))
        else:
            tail.add(line)
    if tail is not None:
        writer.write(tail.lines())


class Ended:
    """Whether a run has ended for good; looked up once a second."""

    def __init__(self, book: Book, record: RunRecord) -> None:
        self.problem: StateError | None = None
        self._book = book
        self._record = record
        self._over = False
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._over and now >= self._next:
            self._next = now + _LOOK
            self._over = self._look()
        return self._over

    def _look(self) -> bool:
        record = self._book.runs.read(self._record.run_id)
        if record is None:
            return True
        seen = self._book.seen(record)
        if not seen.lives and not seen.record.ended:
            self.problem = StateError(
                f"run {record.name!r} is dead: its supervisor was killed",
                hint="'vmrun gc' removes what it left",
            )
        return over(seen)


def within(lines: Iterable[LogLine], first: str, end: str) -> Iterator[LogLine]:
    """Those from ``first`` on and before ``end``; empty texts are no bounds."""
    for line in lines:
        if end and line.time >= end:
            return
        if line.time >= first:
            yield line


class Tail:
    """The last ``count`` lines of those that are added; one that was split counts once."""

    def __init__(self, count: int) -> None:
        self._kept: deque[list[LogLine]] = deque(maxlen=count)
        self._begun: dict[str, list[LogLine]] = {}

    def add(self, line: LogLine) -> None:
        """One more, or one more part of one."""
        whole = self._begun.pop(line.stream, None)
        if whole is None:
            whole = []
            self._kept.append(whole)
        whole.append(line)
        if not line.data.endswith(b"\n"):
            self._begun[line.stream] = whole

    def lines(self) -> Iterator[LogLine]:
        """Those that were kept, in order."""
        for whole in self._kept:
            yield from whole


def last_lines(lines: Iterable[LogLine], count: int) -> Iterator[LogLine]:
    """The last ``count`` of them."""
    tail = Tail(count)
    for line in lines:
        tail.add(line)
    return tail.lines()


class _Writer:
    """Writes lines as they were, each to its own stream; its time in front where one begins."""

    def __init__(self, *, json: bool, timestamps: bool) -> None:
        self._json = json
        self._timestamps = timestamps
        self._within: set[str] = set()

    def write(self, lines: Iterable[LogLine]) -> None:
        put = self._put_json if self._json else self._put
        for line in lines:
            put(line)

    def _put(self, line: LogLine) -> None:
        out = sys.stderr.buffer if line.stream == "stderr" else sys.stdout.buffer
        if self._timestamps and line.stream not in self._within:
            out.write(f"{line.time} ".encode())
        if line.data.endswith(b"\n"):
            self._within.discard(line.stream)
        else:
            self._within.add(line.stream)
        out.write(line.data)
        out.flush()

    def _put_json(self, line: LogLine) -> None:
        from json import dumps

        text = line.data.decode("utf-8", "replace")
        print(dumps({"time": line.time, "stream": line.stream, "data": text}), flush=True)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise UsageError(f"--tail: not a number of lines: {text[:40]!r}", hint="e.g. 100, or all")
    return int(text)
