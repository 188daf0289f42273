"""Fixtures of all tests. What needs a guest boots a real one, under whatever accelerator works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.dockerd import dockerd
from tests.faults.inventory import of_guests
from tests.guest_process import GuestProcess
from tests.registry import plain_registry, registry
from vmrun.model.base import Flavour
from vmrun.settings import load_settings

__all__ = ["dockerd", "plain_registry", "registry"]

# What CI says of a change must depend on the change alone. People's runs go on searching.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parents[1]
ANYTHING = '{"default": [{"type": "insecureAcceptAnything"}]}'
_MOMENT = 5.0
_CONTRACT_MEMORY = {Flavour.MINIMAL: 768, Flavour.DOCKER: 1024}


@dataclass(frozen=True, slots=True)
class Result:
    """A finished ``vmrun``; ``report`` is what --report wrote, empty without a run."""

    status: int
    out: str
    err: str
    report: dict[str, Any]

    def assertion(self, subject: str, name: str) -> dict[str, Any]:
        return next(
            a for a in self.report["assertions"] if (a["subject"], a["name"]) == (subject, name)
        )


def leftovers() -> list[str]:
    """What runs of these tests have left on this host: directories, records that claim to run,
    QEMU processes and supervisors, sockets, cgroups."""
    found = of_guests(load_settings().directories)
    # Tests of another process have guests, too: theirs are empty for a moment, ours for good.
    empty = _empty_cgroups()
    deadline = time.monotonic() + _MOMENT
    while empty and time.monotonic() < deadline:
        time.sleep(0.1)
        empty &= _empty_cgroups()
    return [*found, *sorted(empty)]


def _empty_cgroups() -> set[str]:
    patterns = ("*/machine/qemu-*-vmrun-*", "machine/qemu-*-vmrun-*")
    paths = (path for pattern in patterns for path in Path("/sys/fs/cgroup").glob(pattern))
    return {str(path) for path in paths if not _in_use(path)}


def _in_use(cgroup: Path) -> bool:
    try:
        return any(path.read_text() for path in cgroup.rglob("cgroup.procs"))
    except OSError:
        return True


@pytest.fixture(scope="session", autouse=True)
def own_state() -> Iterator[None]:
    """All tests keep their guests in a state directory of their own; bases are the host's."""
    # Not below pytest's tmp_path: Unix sockets need short paths.
    directory = tempfile.mkdtemp(prefix="vmrun-")
    # QEMU runs as a user of its own and must be able to walk through.
    Path(directory).chmod(0o711)
    policy = Path(directory, "policy.json")
    policy.write_text(ANYTHING)
    policy.chmod(0o644)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMRUN_STATE_DIR", directory)
        # What these tests run is mostly made by themselves and unsigned. Tests of trust name
        # policies of their own.
        patch.setenv("VMRUN_POLICY", str(policy))
        yield
    shutil.rmtree(directory, ignore_errors=True)


Vmrun = Callable[..., Result]


@pytest.fixture(scope="session")
def vmrun_program() -> list[str]:
    return [sys.executable, "-m", "vmrun"]


@pytest.fixture
def vmrun(vmrun_program: list[str], tmp_path: Path) -> Callable[..., Result]:
    """Run a vmrun command to its end: ``vmrun("run", "oci:…", "--", "id")``."""

    def call(
        *arguments: str,
        stdin: bytes = b"",
        timeout: float = 240,
        env: dict[str, str] | None = None,
    ) -> Result:
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        words = list(arguments)
        if words[0] == "run":
            words[1:1] = ["--report", str(report)]
        finished = subprocess.run(
            [*vmrun_program, *words],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=REPOSITORY,
        )
        return Result(
            finished.returncode,
            finished.stdout.decode(errors="replace"),
            finished.stderr.decode(errors="replace"),
            json.loads(report.read_text()) if report.exists() else {},
        )

    return call


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo image as a reference."""
    directory = tmp_path_factory.mktemp("busybox") / "image"
    subprocess.run(
        [sys.executable, str(REPOSITORY / "images/workloads/build.py"), "busybox", str(directory)],
        check=True,
        timeout=300,
        capture_output=True,
    )
    return f"oci:{directory}:demo"


@pytest.fixture(scope="module")
def guest_connection() -> Iterator[Callable[[Flavour], Any]]:
    """A connection to a running guest of a flavour: one for the whole module, gone after it."""
    guests: dict[Flavour, GuestProcess] = {}
    connections: dict[Flavour, Any] = {}

    def connect(flavour: Flavour) -> Any:
        if flavour not in guests:
            guests[flavour] = GuestProcess.start(flavour, _CONTRACT_MEMORY[flavour])
            connections[flavour] = guests[flavour].connect()
        return connections[flavour]

    yield connect
    for flavour, guest in guests.items():
        connections[flavour].close()
        guest.stop()
