"""Many guests alive at once, started by one command, and what each of them takes.

    .venv/bin/python -m tests.benchmarks.density [--guests 30] [--parallel 2] [--json]

Starts detached minimal guests, a few at a time; then measures what they take together (PSS, so that
shared pages count once), how long `ps` and `exec` take with all of them alive, and ends them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.figures import REPOSITORY, VMRUN
from vmrun.hypervisor.process import find_guest_process, proportional_memory

_ANYTHING = '{"default": [{"type": "insecureAcceptAnything"}]}'


@dataclass(frozen=True, slots=True)
class Density:
    """Seconds and MiB; memory is the median of all guests."""

    guests: int
    parallel: int
    all_started: float
    one_start: float
    qemu_memory: float
    supervisor_memory: float
    whole_memory: float
    ps: float
    exec_first: float
    exec_again: float
    stop: float
    remove_all: float
    left: int


def vmrun(*arguments: str) -> str:
    finished = subprocess.run(
        [*VMRUN, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    if finished.returncode != 0:
        raise SystemExit(f"vmrun {' '.join(arguments)}: {finished.stderr}")
    return finished.stdout.strip()


def seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


@contextmanager
def own_state() -> Iterator[Path]:
    """A state directory of this run's own, and the demo image below it."""
    with tempfile.TemporaryDirectory(prefix="vmrun-") as scratch:
        state = Path(scratch)
        state.chmod(0o711)
        (state / "policy.json").write_text(_ANYTHING)
        os.environ["VMRUN_STATE_DIR"] = scratch
        os.environ["VMRUN_POLICY"] = str(state / "policy.json")
        build = [sys.executable, "images/workloads/build.py", "busybox", str(state / "busybox")]
        subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
        yield state


def start_all(image: str, guests: int, parallel: int) -> list[float]:
    """How long each start took."""

    def start(number: int) -> float:
        name = f"guest-{number}"
        command = [
            "run",
            "-q",
            "-d",
            "--name",
            name,
            "--memory",
            "16m",
            image,
            "--",
            "sleep",
            "inf",
        ]
        return seconds(lambda: vmrun(*command))

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(start, range(guests)))


def owners(state: Path) -> list[dict[str, str | int]]:
    """The intents of the guests that live."""
    return [json.loads(path.read_text()) for path in (state / "guests").glob("*/intent.json")]


def measure(guests: int, parallel: int) -> Density:
    with own_state() as state:
        image = f"oci:{state / 'busybox'}:demo"
        vmrun("run", "-q", image, "--", "true")  # warms the caches
        start = time.monotonic()
        each = start_all(image, guests, parallel)
        all_started = time.monotonic() - start
        intents = owners(state)
        qemus = [find_guest_process(str(intent["uuid"])) for intent in intents]
        qemu = [proportional_memory(pid) or 0 for pid in qemus if pid is not None]
        supervisors = [proportional_memory(int(intent["owner"])) or 0 for intent in intents]
        ps = statistics.median(seconds(lambda: vmrun("ps", "-q")) for _ in range(5))
        true = ("exec", "guest-0", "true")
        first = seconds(lambda: vmrun(*true))
        again = statistics.median(seconds(lambda: vmrun(*true)) for _ in range(5))
        stop = seconds(lambda: vmrun("stop", "-t", "0", "guest-0"))
        names = [f"guest-{number}" for number in range(guests)]
        remove = seconds(lambda: vmrun("rm", "-f", *names))
        left = len(owners(state))
    mib = 2**20
    return Density(
        guests=len(qemu),
        parallel=parallel,
        all_started=all_started,
        one_start=statistics.median(each),
        qemu_memory=statistics.median(qemu) / mib,
        supervisor_memory=statistics.median(supervisors) / mib,
        whole_memory=(sum(qemu) + sum(supervisors)) / mib,
        ps=ps,
        exec_first=first,
        exec_again=again,
        stop=stop,
        remove_all=remove,
        left=left,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guests", type=int, default=30)
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = measure(chosen.guests, chosen.parallel)
    if chosen.json:
        print(json.dumps(asdict(found), indent=2))
        return
    print(f"{found.guests} guests alive at once, started {found.parallel} at a time")
    for name, value, unit, target in (
        ("all of them started", found.all_started, "s", None),
        ("one start, median", found.one_start, "s", None),
        ("QEMU of one guest, PSS", found.qemu_memory, "MiB", 200),
        ("supervisor of one guest, PSS", found.supervisor_memory, "MiB", 40),
        ("all of them together", found.whole_memory, "MiB", None),
        ("vmrun ps", found.ps, "s", 0.3),
        ("vmrun exec … true, the first", found.exec_first, "s", 1.0),
        ("vmrun exec … true, median of 5", found.exec_again, "s", 1.0),
        ("vmrun stop -t 0", found.stop, "s", None),
        ("vmrun rm -f, all of them", found.remove_all, "s", None),
        ("guests left", found.left, "", 0),
    ):
        aim = "" if target is None else f"  (target {target:g} {unit})"
        print(f"  {name:<34} {value:8.2f} {unit}{aim}")


if __name__ == "__main__":
    main()
