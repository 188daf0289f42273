"""The figures that vmrun is held to, measured on this host and printed; nothing is asserted.

    .venv/bin/python -m tests.benchmarks.figures [--runs N] [--json]

Each time is a whole command, from its start to its end, as a user would see it.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.guest_process import GuestProcess
from tests.runs import World, short_directory
from vmrun.hypervisor.process import find_guest_process, proportional_memory

REPOSITORY = Path(__file__).resolve().parents[2]
VMRUN = [str(Path(sys.executable).with_name("vmrun"))]
_IDLE_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """``target`` and ``values`` in ``unit``; the median is what counts."""

    name: str
    unit: str
    target: float
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def command_seconds(arguments: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(
        [*VMRUN, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return time.monotonic() - start


def idle_memory() -> float:
    """MiB of the host that an idle minimal guest takes, with the default --memory."""
    guest = GuestProcess.start("minimal", 128)
    try:
        time.sleep(_IDLE_SECONDS)
        intent = json.loads((guest.directory / "intent.json").read_text())
        pid = find_guest_process(intent["uuid"])
        assert pid is not None
        return (proportional_memory(pid) or 0) / 2**20
    finally:
        guest.stop()


def ps_of_many(guests: int) -> tuple[float, ...]:
    """Seconds of ``vmrun ps`` where so many guests have a record, an intent and an owner's lock."""
    before = os.environ.get("VMRUN_STATE_DIR")
    with short_directory() as root:
        world = World(root)
        os.environ["VMRUN_STATE_DIR"] = str(root)
        try:
            for number in range(guests):
                world.live(f"run-{number}")
            return repeat(10, lambda: command_seconds(["ps"]))
        finally:
            world.close()
            os.environ.pop("VMRUN_STATE_DIR")
            if before is not None:
                os.environ["VMRUN_STATE_DIR"] = before


def repeat(runs: int, measure: Callable[[], float]) -> tuple[float, ...]:
    measure()  # warms the page cache, QEMU's capabilities and the accelerator's verdict
    return tuple(measure() for _ in range(runs))


def measure_all(runs: int, image: str) -> list[Figure]:
    run = ["run", "-q", image, "--", "true"]
    docker = ["run", "-q", "--engine", "docker", image, "--", "true"]
    return [
        Figure("vmrun --help", "ms", 150, scaled(repeat(10, lambda: command_seconds(["--help"])))),
        Figure(
            "vmrun plan", "ms", 400, scaled(repeat(10, lambda: command_seconds(["plan", image])))
        ),
        Figure("vmrun ps, 50 guests", "ms", 300, scaled(ps_of_many(50))),
        Figure("vmrun run, crun", "s", 10, repeat(runs, lambda: command_seconds(run))),
        Figure("vmrun run, docker", "s", 45, repeat(runs, lambda: command_seconds(docker))),
        Figure("idle minimal guest, PSS", "MiB", 200, repeat(3, idle_memory)),
    ]


def scaled(seconds: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(1000 * value for value in seconds)


def phases(image: str) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile() as report:
        command_seconds(["run", "-q", "--report", report.name, image, "--", "true"])
        found: list[dict[str, Any]] = json.load(report)["phases"]
        return found


def sign(image: str, scratch: Path) -> None:
    """Sign the image and allow it, so that every run verifies and scans as a user's does."""
    policy, rules, name = scratch / "policy.json", scratch / "trust.toml", "registry.example.com/b"
    os.environ |= {
        "VMRUN_KEY_PASSWORD": "benchmark",
        "VMRUN_POLICY": str(policy),
        "VMRUN_TRUST_RULES": str(rules),
    }
    rules.write_text("version = 1\n[scan]\nrequired = true\n")
    policy.write_text('{"default": [{"type": "reject"}]}')
    folder, key = image.split(":")[1], str(scratch / "key")
    command_seconds(["key", "generate", "--out", key])
    command_seconds(["image", "sign", "--key", f"{key}.key", "--identity", f"{name}:1", image])
    allow = ["--transport", "oci", "--key", f"{key}.pub", "--identity-repository", name]
    command_seconds(["policy", "allow", folder, *allow])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        build = REPOSITORY / "images/workloads/build.py"
        subprocess.run(
            [sys.executable, build, "busybox", f"{scratch}/image"], check=True, timeout=300
        )
        image = f"oci:{scratch}/image:demo"
        sign(image, Path(scratch))
        figures = measure_all(options.runs, image)
        profile = phases(image)
    if options.json:
        print(json.dumps({"figures": [asdict(f) for f in figures], "phases": profile}, indent=2))
        return
    print(f"{'':28}{'median':>10}{'least':>10}{'most':>10}{'target':>10}   n")
    for f in figures:
        least, most = min(f.values), max(f.values)
        print(
            f"{f.name:28}{f.median:10.1f}{least:10.1f}{most:10.1f}{f.target:10g} {f.unit:4}"
            f"{len(f.values)}"
        )
    print("\nphases of one crun run, in seconds:")
    for phase in profile:
        print(f"  {phase['name']:14}{phase['duration']:8.3f}")


if __name__ == "__main__":
    main()
