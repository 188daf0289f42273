"""A state directory of its own with a bystander in it, and the vmrun commands that work there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.conftest import ANYTHING, REPOSITORY
from tests.e2e.interrupted import TerminalRun
from tests.faults.point import LEASE, VARIABLE
from vmrun.hypervisor.process import find_guest_processes
from vmrun.journal.entry import Entry
from vmrun.journal.journal import Journal
from vmrun.model.errors import VmrunError
from vmrun.model.run_record import RunRecord
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.state import alive
from vmrun.settings import load_settings
from vmrun.supervisor.client import ask, dial
from vmrun.supervisor.protocol import Kind
from vmrun.supervisor.records import Runs

COMMAND = [sys.executable, "-m", "tests.faults.command"]
BYSTANDER = "bystander"
SHORT_LEASE = 9
_TIMEOUT = 240.0
_Found = TypeVar("_Found")


class Violated(AssertionError):
    """Something that must hold does not."""


@dataclass(slots=True)
class World:
    """``root`` is the state directory; ``image`` what is run."""

    root: Path
    image: str
    temporary: Path
    bystander: str = ""
    decoys: set[str] = field(default_factory=set)
    """Names below ``guests`` that are not vmrun's and must stay."""

    @property
    def directories(self) -> StateDirectories:
        return load_settings({"VMRUN_STATE_DIR": str(self.root), "HOME": "/"}).directories

    @property
    def runs(self) -> Runs:
        return Runs(self.directories.runs)

    def environment(self, *, fault: str = "", lease: int | None = None) -> dict[str, str]:
        env = {
            **os.environ,
            "VMRUN_STATE_DIR": str(self.root),
            "VMRUN_POLICY": str(self.root / "policy.json"),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(REPOSITORY),
            VARIABLE: fault,
        }
        return env | ({LEASE: str(lease)} if lease else {})

    def vmrun(
        self, *words: str, fault: str = "", lease: int | None = None, timeout: float = _TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        return subprocess.run(
            [*COMMAND, *words],
            env=self.environment(fault=fault, lease=lease),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
            cwd=REPOSITORY,
        )

    def popen(self, *words: str, fault: str = "") -> subprocess.Popen[bytes]:
        """A command that goes on."""
        return subprocess.Popen(
            [*COMMAND, *words],
            env=self.environment(fault=fault),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )

    def start(self, *words: str, fault: str = "", lease: int | None = None) -> TerminalRun:
        """A command that says which phase it is in."""
        return TerminalRun(
            [*COMMAND, *words], environment=self.environment(fault=fault, lease=lease)
        )

    def run(
        self, *words: str, options: tuple[str, ...] = (), fault: str = "", lease: int | None = None
    ) -> TerminalRun:
        """An attended run of a command in the image."""
        command = words or ("sleep", "600")
        return self.start("run", *options, self.image, "--", *command, fault=fault, lease=lease)

    def detached(
        self,
        *words: str,
        options: tuple[str, ...] = (),
        lease: int | None = None,
        fault: str = "",
    ) -> str:
        """A detached run that has started; its id."""
        done = self.vmrun(
            *("run", "-d", *options, self.image, "--", *(words or ("sleep", "600"))),
            lease=lease,
            fault=fault,
        )
        if done.returncode != 0:
            raise Violated(f"run -d: status {done.returncode}: {done.stderr[-600:]}")
        return done.stdout.split()[-1]

    def gc(self, *, fault: str = "", timeout: float = _TIMEOUT) -> str:
        """``vmrun gc``, once; what it said."""
        done = self.vmrun("gc", fault=fault, timeout=timeout)
        if done.returncode != 0 and not fault:
            raise Violated(f"gc: status {done.returncode}: {done.stderr[-600:]}")
        return done.stderr

    def execute(self, run_id: str, *argv: str, timeout: float = 60.0) -> tuple[int, bytes]:
        """One more process in a run; its status and output."""
        line = dial(self.directories.guests / run_id)
        try:
            ask(line, "exec", timeout=timeout, run=run_id, argv=list(argv))
            line.sock.settimeout(timeout)
            out = b""
            while True:
                kind, data = line.receive_frame()
                if kind is Kind.STDOUT:
                    out += data
                elif kind is Kind.EXIT:
                    return int(data), out
                elif kind is Kind.FAILURE:
                    raise Violated(f"exec: {data.decode(errors='replace')}")
        finally:
            line.close()

    def owner(self, run_id: str) -> int:
        """The process that owns a guest: the command, or its supervisor."""
        return next(i.owner for i in alive(self.directories) if i.run_id == run_id)

    def qemu(self, run_id: str) -> int:
        """The QEMU of a guest. Fails without exactly one."""
        (pid,) = find_guest_processes("", f"vmrun-{run_id}")
        return pid

    def others(self) -> list[Intent]:
        """The guests that live, but for the bystander's."""
        return [i for i in alive(self.directories) if i.run_id != self.bystander]

    def newest(self, timeout: float = 60.0) -> str:
        """The id of the guest that lives besides the bystander's."""
        return until(lambda: next((i.run_id for i in self.others()), None), "no guest", timeout)

    def state(self, run_id: str) -> str:
        record = self.runs.read(run_id)
        return "" if record is None else str(record.state)

    def record(self, run_id: str) -> RunRecord:
        record = self.runs.read(run_id)
        if record is None:
            raise Violated(f"run {run_id} has no record")
        return record

    def entries(self) -> list[Entry]:
        return list(Journal(self.directories.journal).entries())

    def calm_down(self, timeout: float = 90.0) -> None:
        """Wait for what ends by itself, and end what would go on: then one gc must be enough."""
        deadline = time.monotonic() + timeout
        while living := self.others():
            for intent in living:
                if self.state(intent.run_id) in ("running", "paused", "restarting"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(intent.owner, signal.SIGTERM)
            if time.monotonic() > deadline:
                raise Violated(f"does not end: {[i.run_id for i in living]}")
            time.sleep(0.2)
        while time.monotonic() < deadline and self._busy():
            time.sleep(0.1)

    def _busy(self) -> bool:
        """Whether a supervisor has still to write its last word."""
        return any(
            self.runs.held(r.run_id)
            for r in self.runs.all(on_damage=lambda _: None)
            if r.run_id != self.bystander
        )

    def raise_bystander(self) -> None:
        """Start the guest that nothing may touch."""
        with contextlib.suppress(VmrunError):
            for record in self.runs.all(on_damage=lambda _: None):
                if record.name == BYSTANDER:
                    self.runs.remove(record.run_id)
        self.bystander = self.detached("sleep", "100000", options=("--name", BYSTANDER))


def until(
    look: Callable[[], _Found | None], what: str, timeout: float = 60.0, pause: float = 0.05
) -> _Found:
    """What ``look`` finds, as soon as it does."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = look()
        except (VmrunError, OSError, ValueError, StopIteration):
            found = None
        if found:
            return found
        if time.monotonic() > deadline:
            raise Violated(f"{what} within {timeout:g} s")
        time.sleep(pause)


def signal_to(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def world(image: str, *, bystander: bool = True, size: str = "") -> Iterator[World]:
    """A world, and its end. With ``size`` it is a file system of that size (tmpfs, mount(8))."""
    # Unix sockets need short paths.
    place = Path(tempfile.mkdtemp(prefix="vf-", dir="/tmp"))
    place.chmod(0o711)
    root, temporary = place / "s", place / "t"
    for directory in (root, temporary):
        directory.mkdir(mode=0o711)
    if size:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", str(root)]
        subprocess.run(mount, check=True, timeout=20)
    (root / "policy.json").write_text(ANYTHING)
    made = World(root, image, temporary)
    try:
        if bystander:
            made.raise_bystander()
        yield made
    finally:
        with contextlib.suppress(VmrunError, Violated):
            made.bystander = ""
            made.calm_down()
        _kill_all(made)
        if size:
            subprocess.run(["umount", "-l", str(root)], check=False, timeout=20)
        shutil.rmtree(place, ignore_errors=True)


def _kill_all(made: World) -> None:
    with contextlib.suppress(Violated, subprocess.TimeoutExpired):
        for intent in alive(made.directories):
            signal_to(intent.owner, signal.SIGKILL)
        made.gc()


def demo_image(directory: Path) -> str:
    """The demo image as a reference."""
    words = [str(REPOSITORY / "images/workloads/build.py"), "busybox", str(directory)]
    subprocess.run([sys.executable, *words], check=True, timeout=300, capture_output=True)
    return f"oci:{directory}:demo"
