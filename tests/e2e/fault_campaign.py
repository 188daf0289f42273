"""``python -m tests.e2e.fault_campaign``: kill things, run gc once, and count what is left.

Exit status 1 when anything was violated.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.faults.decoys import decoys
from tests.faults.disk import SIZE
from tests.faults.every import every_fault
from tests.faults.fault import Fault, Field, Outcome, report, suffer
from tests.faults.world import demo_image, world


@contextmanager
def field_of(image: str, seed: int, *, size: str = "", bystander: bool = True) -> Iterator[Field]:
    """A world with decoys and a bystander, on a file system of that size if one is given."""
    with world(image, size=size, bystander=bystander) as made, decoys(made) as false:
        yield Field(made, false, random.Random(seed))


def campaign(faults: Sequence[Fault], place: Field, *, rounds: int = 1) -> list[Outcome]:
    """Each fault so many times; says how each went."""
    outcomes = []
    for number in range(rounds):
        for fault in faults:
            outcome = suffer(fault, place)
            outcomes.append(outcome)
            word = "ok" if outcome.good else "VIOLATED"
            print(f"{word:9}{outcome.seconds:6.1f} s  {fault.name} [{number + 1}]", file=sys.stderr)
            for violation in outcome.violations:
                print(f"           {violation}", file=sys.stderr, flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a fault, and totals."""
    names = list(dict.fromkeys(outcome.fault for outcome in outcomes))
    rows = [_row(name, [o for o in outcomes if o.fault == name]) for name in names]
    rows.append(_row("total", outcomes))
    head = ("fault", "rounds", "left", "decoys", "bystander", "journal", "other", "seconds")
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    return (
        name,
        str(len(outcomes)),
        str(sum(len(o.left) for o in outcomes)),
        str(sum(len(o.touched) for o in outcomes)),
        "lost" if any(o.bystander for o in outcomes) else "ok",
        "wrong" if any(o.journal for o in outcomes) else "ok",
        str(sum(len(o.problems) for o in outcomes)),
        f"{sum(o.seconds for o in outcomes):.0f}",
    )


def main() -> int:
    """The whole campaign, or what was asked for of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.fault_campaign")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", metavar="NAME", help="faults whose names match it")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true", help="print the faults, and do none")
    asked = parser.parse_args()
    faults = [fault for fault in every_fault() if re.search(asked.only, fault.name)]
    if asked.list or not faults:
        print("\n".join(fault.name for fault in faults))
        return 0 if faults else 2
    print(f"seed {asked.seed}, {len(faults)} faults", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="vf-image-") as directory:
        Path(directory).chmod(0o755)
        image = demo_image(Path(directory) / "image")
        outcomes = []
        for small in (False, True):
            some = [fault for fault in faults if fault.small is small]
            if some:
                with field_of(image, asked.seed, size=SIZE if small else "") as place:
                    outcomes += campaign(some, place, rounds=asked.rounds)
    print(table(outcomes))
    if asked.json is not None:
        report(outcomes, asked.json)
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
