"""What the commands about runs share: finding a run, asking its owner, and doing several."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli.output import print_error, print_json
from vmrun.model.errors import EXIT_INTERRUPTED, StateError, VmrunError
from vmrun.settings import load_settings

if TYPE_CHECKING:
    from vmrun.model.run_record import RunRecord
    from vmrun.run.directories import StateDirectories
    from vmrun.run.survey import Seen
    from vmrun.supervisor.records import Runs

_ANSWER = 120.0
_TEARDOWN = 90.0
_LAST_WORD = 5.0
_POLL = 0.05
_AT_A_TIME = 16

Run = Annotated[
    str, typer.Argument(help="A run: its name, its id, or the beginning of its id.", metavar="RUN")
]
SomeRuns = Annotated[
    list[str], typer.Argument(help="Runs: names, ids, or beginnings of ids.", metavar="RUN…")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Book:
    """The records of this user's runs, and where their guests are."""

    directories: StateDirectories
    runs: Runs

    def find(self, selector: str) -> RunRecord:
        """Raises :class:`StateError` for none, and for more than one."""
        return self.runs.find(selector)

    def seen(self, record: RunRecord) -> Seen:
        """How it is now. Raises :class:`StateError` when its record has gone."""
        from vmrun.run.survey import see

        seen = see(self.directories, record)
        if seen is None:
            raise StateError(f"run {record.name!r} has ended", hint="see 'vmrun ps -a'")
        return seen

    def guest(self, record: RunRecord) -> Path:
        """The directory of the guest that it runs in."""
        return self.directories.guests / record.guest

    def must_run(self, selector: str) -> RunRecord:
        """The run of that name; :class:`StateError` unless somebody answers for it."""
        from vmrun.model.run_record import RunState

        seen = self.seen(self.find(selector))
        name = seen.record.name
        if seen.kept_until:
            raise StateError(
                f"run {name!r} has failed; its guest is only kept", hint=f"vmrun rm {name}"
            )
        if seen.state is RunState.DEAD and not seen.record.ended:
            raise StateError(
                f"run {name!r} is dead: its supervisor was killed", hint="'vmrun gc' removes it"
            )
        if not seen.lives:
            raise StateError(f"run {name!r} is not running", hint="see 'vmrun ps -a'")
        return seen.record

    def ask(
        self, record: RunRecord, op: str, *, timeout: float = _ANSWER, **fields: Any
    ) -> dict[str, Any]:
        """One question about a run to the owner of its guest."""
        from vmrun.supervisor.client import request

        return request(self.guest(record), op, timeout=timeout, run=record.run_id, **fields)

    def settle_down(self, record: RunRecord) -> None:
        """Return when the guest of a run that has ended is gone and its record final; at once for
        one that shares its guest. Raises :class:`StateError` when that takes too long."""
        from vmrun.run.survey import guest_lives

        if record.guest != record.run_id:
            return
        deadline = time.monotonic() + _TEARDOWN
        while guest_lives(self.directories, record.guest):
            if time.monotonic() > deadline:
                raise StateError(
                    f"the guest of run {record.name!r} is still being torn down",
                    hint="see 'vmrun ps -a'",
                )
            time.sleep(_POLL)
        # The owner lets go of the guest before it writes its last word down.
        deadline = time.monotonic() + _LAST_WORD
        while self.runs.held(record.run_id) and time.monotonic() < deadline:
            time.sleep(_POLL)


def over(seen: Seen) -> bool:
    """Whether a run has ended for good. One whose own guest is not gone yet may come back in
    another, if that is its restart policy."""
    return not seen.lives and (seen.record.guest != seen.record.run_id or not seen.owner)


def open_book() -> Book:
    """The book of the user who asks."""
    from vmrun.supervisor.records import Runs

    directories = load_settings().directories
    return Book(directories, Runs(directories.runs))


@dataclass(slots=True)
class _Outcome:
    selector: str
    fields: dict[str, Any] | None = None
    error: VmrunError | None = None


def each(
    selectors: Sequence[str],
    act: Callable[[str], dict[str, Any]],
    *,
    json: bool,
    line: Callable[[str, dict[str, Any]], str] = lambda selector, _: selector,
) -> None:
    """Do ``act`` for each, several at a time, and print a line for each that succeeded; status 1
    when one failed, whose error is told. With ``json`` one list of all."""
    outcomes = [_Outcome(selector) for selector in selectors]
    free = threading.Semaphore(_AT_A_TIME)

    def run(outcome: _Outcome) -> None:
        with free:
            try:
                outcome.fields = act(outcome.selector)
            except VmrunError as error:
                outcome.error = error

    with interruptible():
        if len(outcomes) == 1:
            run(outcomes[0])
        else:
            threads = [
                threading.Thread(target=run, args=(outcome,), daemon=True) for outcome in outcomes
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    for outcome in outcomes:
        if outcome.error is not None:
            print_error(outcome.error)
        elif not json and outcome.fields is not None:
            print(line(outcome.selector, outcome.fields))
    if json:
        print_json([_as_fields(outcome) for outcome in outcomes])
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)


def _as_fields(outcome: _Outcome) -> dict[str, Any]:
    error = outcome.error.message if outcome.error else ""
    return {"run": outcome.selector, **(outcome.fields or {}), "error": error}


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the command, not what it is about: status 130, and nothing is said."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
