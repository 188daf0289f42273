"""One fault, and how its outcome is judged."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.decoys import Decoys
from tests.faults.inventory import leftovers
from tests.faults.world import Violated, World
from vmrun.model.errors import VmrunError

_LAST_WORDS = ("run.end", "run.lost")


@dataclass(frozen=True, slots=True)
class Field:
    """Where faults happen."""

    world: World
    decoys: Decoys
    chance: random.Random


Act = Callable[[Field], None]
"""Does harm, and returns when it is done."""


@dataclass(frozen=True, slots=True)
class Fault:
    """``act`` does harm and returns when it is done; ``quick`` ones boot no guest of their own.
    ``total``: it takes the bystander, too, as a reboot does. ``small``: on a file system of a few
    MiB."""

    name: str
    act: Act
    quick: bool = False
    total: bool = False
    small: bool = False


@dataclass(slots=True)
class Outcome:
    """What was found after one fault and one gc."""

    fault: str
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    bystander: str = ""
    journal: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was violated."""
        return not (self.problems or self.left or self.touched or self.bystander or self.journal)

    @property
    def violations(self) -> list[str]:
        """All that was, in words."""
        by = [f"bystander: {self.bystander}"] if self.bystander else []
        return [*self.problems, *self.left, *self.touched, *by, *self.journal]


def suffer(fault: Fault, place: Field) -> Outcome:
    """Let it happen, run gc once, and look."""
    world = place.world
    outcome = Outcome(fault.name)
    begun = time.monotonic()
    for act in (lambda: fault.act(place), world.calm_down, world.gc):
        try:
            act()
        except Exception as error:
            outcome.problems.append(f"{type(error).__name__}: {error}")
    judge(place, outcome)
    if fault.total or outcome.bystander:
        world.raise_bystander()
    outcome.seconds = time.monotonic() - begun
    return outcome


def judge(place: Field, outcome: Outcome) -> None:
    """Count what is left, and see whether all is well that was not hit."""
    world = place.world
    living = [world.bystander] if world.bystander else []
    ids = started(world) | ended(world)
    outcome.left += leftovers(world.directories, living=living, others=world.decoys, ids=ids)
    outcome.left += [f"temporary {path}" for path in world.temporary.iterdir()]
    outcome.touched += place.decoys.touched()
    if world.bystander:
        outcome.bystander = unwell(world)
    outcome.journal += journal_problems(world)


def unwell(world: World) -> str:
    """Why the bystander is not well; empty when it is."""
    try:
        status, out = world.execute(world.bystander, "echo", "alive")
    except (VmrunError, OSError, Violated) as error:
        return f"{type(error).__name__}: {error}"
    return "" if (status, out) == (0, b"alive\n") else f"status {status}, {out[:40]!r}"


def started(world: World) -> set[str]:
    """The runs that the journal has as started."""
    return {e.fields["run"] for e in world.entries() if e.event == "run.start"}


def ended(world: World) -> set[str]:
    """The runs, and the guests, of whose end the journal tells."""
    runs = {e.fields["run"] for e in world.entries() if e.event in _LAST_WORDS}
    return runs | {e.fields["guest"] for e in world.entries() if e.event == "guest.reclaim"}


def journal_problems(world: World) -> list[str]:
    """Whether the chain holds, and tells of the end of everything that it has as started."""
    done = world.vmrun("audit", "verify", timeout=60)
    found = [] if done.returncode == 0 else [f"audit verify: {done.stderr.strip()[-200:]}"]
    untold = started(world) - ended(world) - {world.bystander}
    return found + [f"the journal does not tell how run {run} ended" for run in sorted(untold)]


def report(outcomes: Sequence[Outcome], file: Path) -> None:
    """All of it, for machines."""
    from dataclasses import asdict
    from json import dumps

    file.write_text(dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
