"""``vmrun stats``: what runs use now."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.output import print_error, print_json, table
from vmrun.cli.runs import Book, Json, interruptible, open_book
from vmrun.model.errors import StateError, VmrunError
from vmrun.model.quantity import format_size

if TYPE_CHECKING:
    from vmrun.model.run_record import RunRecord
    from vmrun.model.stats import Stats

_ASK = 30.0
_APART = 1.0
"""Seconds between two readings, from which the use of processors is computed."""
_REFRESH = 2.0
_HEADER = ("run id", "name", "cpu %", "memory / limit", "mem %", "pids", "guest", "qemu")
_UNKNOWN = "--"


@dataclass(frozen=True, slots=True)
class Reading:
    """One run's counters, None where they could not be read, and why."""

    record: RunRecord
    stats: Stats | None
    problem: str = ""


def stats_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs; default: all that are running.", metavar="RUN…", show_default=False
        ),
    ] = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print once. So it does without a terminal.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what runs use, again and again on a terminal."""
    book = open_book()
    once = no_stream or json or not sys.stdout.isatty()
    with interruptible():
        before = _read_all(_chosen(book, runs), book)
        time.sleep(_APART)
        while True:
            now = _read_all(_chosen(book, runs), book)
            if json:
                print_json([fields(reading, _of(reading, before)) for reading in now])
            else:
                text = table([_row(r, _of(r, before)) for r in now], header=_HEADER)
                print(text if once else f"\x1b[H\x1b[J{text}", flush=True)
            if once:
                break
            before = now
            time.sleep(_REFRESH)
    failed = [reading for reading in now if reading.problem and runs]
    for reading in failed:
        print_error(StateError(f"run {reading.record.name!r}: {reading.problem}"))
    if failed:
        raise typer.Exit(1)


def _chosen(book: Book, selectors: list[str] | None) -> list[RunRecord]:
    from vmrun.model.run_record import RunState
    from vmrun.run.survey import survey

    if selectors:
        return [book.must_run(selector) for selector in selectors]
    found = survey(book.directories, on_damage=print_error)
    shown = (RunState.RUNNING, RunState.PAUSED)
    return [seen.record for seen in found if seen.state in shown and not seen.kept_until]


def _read_all(records: list[RunRecord], book: Book) -> list[Reading]:
    """All at the same time: each answer takes a command in its guest."""
    readings: dict[int, Reading] = {}

    def read(number: int, record: RunRecord) -> None:
        readings[number] = _read(record, book)

    threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(records)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [readings[number] for number in range(len(records))]


def _read(record: RunRecord, book: Book) -> Reading:
    from vmrun.model.stats import Stats
    from vmrun.model.wire import decode

    try:
        answer = book.ask(record, "stats", timeout=_ASK).get("stats")
        return Reading(record, decode(Stats, answer))
    except VmrunError as error:
        return Reading(record, None, error.message)


def _of(reading: Reading, earlier: list[Reading]) -> Stats | None:
    return next((e.stats for e in earlier if e.record.run_id == reading.record.run_id), None)


def cpu_percent(before: Stats | None, now: Stats | None) -> float | None:
    """Of one processor, as docker counts; None without two readings of the same container."""
    if before is None or now is None:
        return None
    elapsed = now.read_at - before.read_at
    used = now.cpu_seconds - before.cpu_seconds
    # A container that was started again counts from zero.
    return None if elapsed <= 0 or used < 0 else 100 * used / elapsed


def fields(reading: Reading, before: Stats | None) -> dict[str, object]:
    """A reading for programs."""
    from vmrun.model.wire import encode

    record = reading.record
    known = {"run_id": record.run_id, "name": record.name, "tenant": record.tenant}
    counters = encode(reading.stats) if reading.stats else {}
    percent = cpu_percent(before, reading.stats)
    return {**known, "cpu_percent": percent, **counters, "error": reading.problem}


def _row(reading: Reading, before: Stats | None) -> tuple[str, ...]:
    record, stats = reading.record, reading.stats
    if stats is None:
        return (record.run_id, record.name, *[_UNKNOWN] * (len(_HEADER) - 2))
    percent = cpu_percent(before, stats)
    return (
        record.run_id,
        record.name,
        _UNKNOWN if percent is None else f"{percent:.2f}%",
        f"{format_size(stats.memory)} / {format_size(stats.memory_limit)}",
        f"{100 * stats.memory / stats.memory_limit:.2f}%" if stats.memory_limit else _UNKNOWN,
        f"{stats.pids} / {stats.pids_limit}",
        format_size(stats.guest_memory),
        _UNKNOWN if stats.qemu_memory is None else format_size(stats.qemu_memory),
    )
