"""Runs that never were: records, guests' directories with owners, and supervisors that answer."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmrun.model.report import Receipt
from vmrun.model.run_record import RunRecord, RunState
from vmrun.run.directories import StateDirectories
from vmrun.run.state import GuestDirectory, claim
from vmrun.supervisor.protocol import SOCKET, Line
from vmrun.supervisor.records import Runs
from vmrun.supervisor.server import Server


def a_record(run_id: str, name: str, **fields: Any) -> RunRecord:
    """A record of a run that has a guest of its own."""
    now = time.time()
    record = RunRecord(
        run_id=run_id,
        name=name,
        tenant="default",
        guest=run_id,
        image="registry.example.com/app:1",
        image_digest="sha256:" + "0" * 64,
        command="server",
        engine="crun",
        profile="restricted",
        accelerator="kvm",
        isolated=True,
        base="sha256:" + "1" * 64,
        state=RunState.RUNNING,
        created=now - 301,
        started=now - 300,
        detached=True,
    )
    return replace(record, **fields)


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory below which Unix sockets' paths fit."""
    path = Path(tempfile.mkdtemp(prefix="vr-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class World:
    """A state directory with runs in it; what lives is owned by this process."""

    def __init__(self, root: Path) -> None:
        self.directories = StateDirectories(root / "guests", root / "cache", (root / "bases",))
        self.runs = Runs(self.directories.runs)
        self.owned: dict[str, GuestDirectory] = {}
        self._servers: list[Server] = []

    def live(self, name: str, **fields: Any) -> RunRecord:
        """A run whose guest has an owner."""
        directory = claim(self.directories, name=name, tenant="default", connect="embedded")
        run_id = directory.intent.run_id
        self.owned[run_id] = directory
        record = a_record(run_id, name, **fields)
        self.runs.write(record)
        return record

    def ended(self, run_id: str, name: str, **fields: Any) -> RunRecord:
        """A run that has ended in an orderly way."""
        now = time.time()
        known = {
            "state": RunState.EXITED,
            "exit_status": 0,
            "created": now - 7500,
            "started": now - 7499,
            "finished": now - 7200,
            "receipt": Receipt(()),
        }
        record = a_record(run_id, name, **{**known, **fields})
        self.runs.write(record)
        return record

    def answers(self, record: RunRecord, **answers: Callable[[Line, dict[str, Any]], None]) -> None:
        """Whoever owns the guest of ``record`` answers so from now on."""
        path = self.directories.guests / record.guest / SOCKET
        self._servers.append(Server(path, answers))

    def lose(self, record: RunRecord) -> None:
        """Its owner is killed."""
        self.owned.pop(record.guest).release()

    def end(self, record: RunRecord, **fields: Any) -> None:
        """It ends, and its guest goes, as its supervisor would have it."""
        last = replace(
            record, state=RunState.EXITED, finished=time.time(), receipt=Receipt(()), **fields
        )
        self.runs.write(last)
        directory = self.owned.pop(record.guest)
        directory.remove()
        directory.release()

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for directory in self.owned.values():
            directory.release()
