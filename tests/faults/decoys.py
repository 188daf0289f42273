"""What looks like vmrun's and is not. All of it must be there, unchanged, at the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.world import World

_ASLEEP = "import time; time.sleep(100000)"
_QEMU = "qemu-system-x86_64"


@dataclass(slots=True)
class Decoys:
    """Processes and files beside a world's own."""

    world: World
    outside: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    links: list[Path] = field(default_factory=list)

    def process(self, what: str, *arguments: str) -> int:
        """A process that calls itself QEMU; its pid."""
        self.processes[what] = subprocess.Popen(
            [_QEMU, "-c", _ASLEEP, *arguments],
            executable=sys.executable,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self.processes[what].pid

    def like(self, run_id: str) -> None:
        """One with the very name and uuid of that guest; and links in its directory."""
        directory = self.world.directories.guests / run_id
        intent = json.loads((directory / "intent.json").read_text())
        name = f"guest=vmrun-{run_id},debug-threads=on"
        self.process(f"named as {run_id}", "-name", name, "-uuid", intent["uuid"])
        for place in (directory, directory / "r"):
            if place.is_dir():
                (place / "outside").symlink_to(self.outside)
                (place / "precious").symlink_to(self.outside / "precious")

    def file(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.files[path] = text

    def touched(self) -> list[str]:
        """What of them is not as it was."""
        found = [f"killed {what}" for what, p in self.processes.items() if p.poll() is not None]
        for path, text in self.files.items():
            try:
                same = path.read_text() == text
            except OSError:
                same = False
            found += [] if same else [f"changed {path}"]
        found += [f"removed {link}" for link in self.links if not link.is_symlink()]
        expected = {path.name for path in self.files if path.parent == self.outside}
        extra = {path.name for path in self.outside.iterdir()} - expected
        return found + [f"made {self.outside / name}" for name in sorted(extra)]


@contextlib.contextmanager
def decoys(world: World) -> Iterator[Decoys]:
    """Decoys beside ``world`` for the length of the block."""
    guests = world.directories.guests
    guests.mkdir(exist_ok=True, mode=0o711)
    made = Decoys(world, world.temporary.parent / "outside")
    made.outside.mkdir()
    made.file(made.outside / "precious", "mine")
    # It even has an intent: it is somebody's backup of one.
    made.file(made.outside / "intent.json", _intent(guests, "0123456789ab", os.getpid()))
    made.file(guests / "NOT-A-RUN-ID" / "notes", "mine")
    made.file(guests / "0123456789abc" / "notes", "mine")
    made.file(guests / "fedcba987654", "a file")
    link = guests / "0123456789ab"
    link.symlink_to(made.outside)
    made.links.append(link)
    made.process("somebody's guest", "-name", "guest=vmrun,debug", "-uuid", str(uuid.uuid4()))
    world.decoys |= {"NOT-A-RUN-ID", "0123456789abc", "fedcba987654", "0123456789ab"}
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait()


def orphan_that_names(world: World, run_id: str, pid: int) -> None:
    """The directory of a dead guest whose owner's pid is another process's by now."""
    path = world.directories.guests / run_id
    path.mkdir()
    (path / "owner").touch(mode=0o600)
    (path / "intent.json").write_text(_intent(path.parent, run_id, pid))


def _intent(guests: Path, run_id: str, pid: int) -> str:
    return json.dumps(
        {
            "run_id": run_id,
            "name": f"web-{run_id[:4]}",
            "tenant": "default",
            "uuid": str(uuid.uuid4()),
            "domain": f"vmrun-{run_id}",
            "slot": 77,
            "connect": "embedded",
            "owner": pid,
            "created": time.time(),
        }
    )
