"""One container in a live guest: delivered, started behind its gate, and told what to do."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from vmrun.engine.container import run_command
from vmrun.engine.copying import archive_command, extract_command
from vmrun.engine.guest import counters_command, freeze_command
from vmrun.engine.selection import make_engine
from vmrun.model.errors import EngineError, Refused
from vmrun.model.network import Publish
from vmrun.model.plan import Plan
from vmrun.model.report import Assertion, Usage
from vmrun.planning.container_spec import oci_process
from vmrun.policy.confinement import check_container
from vmrun.run.ports import RemoteProcess, RunningContainer, Streams, TerminalSize
from vmrun.supervisor.live import LiveGuest, must_hold

_GATE_TIMEOUT = 60.0
_END_TIMEOUT = 60.0


class Wire(Protocol):
    """What connects a container's network namespace, if anything does."""

    def reserve(self, plan: Plan) -> tuple[Publish, ...]:
        """Take the ports of the host that a run publishes; returns them as they are."""

    def lay(self, plan: Plan) -> None:
        """Make what has to be there before the container is made."""

    def attach(self, plan: Plan, pid: int) -> None:
        """Connect the container whose first process, ``pid``, still waits at the gate."""

    def detach(self, plan: Plan) -> None:
        """Its container has ended for good; never raises."""


class Contained:
    """A container from its delivery to its end; :meth:`start` may follow :meth:`wait` again.

    ``number`` chooses among the guest's SSH connections.
    """

    def __init__(
        self, plan: Plan, live: LiveGuest, streams: Streams, *, wire: Wire, number: int = 0
    ) -> None:
        self.plan = plan
        self._live = live
        self._streams = streams
        self._wire = wire
        self._number = number
        self._engine = make_engine(plan.workload.engine, scratch=live.directory.path)
        self._container: RunningContainer | None = None
        self._pid = 0
        self._over = threading.Event()

    def deliver(self) -> int:
        """Move the image into the guest; returns the bytes moved."""
        return self._engine.deliver(self.plan, self._live.connection(self._number))

    def start(self) -> tuple[Assertion, ...]:
        """Start it up to the gate, read live how it is confined, and let its first instruction run
        if that is what was planned. Returns what was asserted."""
        connection = self._live.connection(self._number)
        self._wire.lay(self.plan)
        self._over.clear()
        container = self._engine.start(self.plan, connection, self._streams)
        self._container = container
        try:
            reading = container.reading(_GATE_TIMEOUT)
            assertions = must_hold(check_container(self.plan, reading))
            self._wire.attach(self.plan, reading.pid)
            self._pid = reading.pid
            container.release()
        except BaseException:
            container.kill()
            raise
        return assertions

    def wait(self) -> int:
        """Its exit status, once all of its output has been written."""
        try:
            return self._running().wait()
        finally:
            self._over.set()

    def usage(self) -> Usage:
        """What it used; after :meth:`wait`."""
        return self._running().usage()

    def kill(self) -> None:
        """Kill all of it at once; never raises."""
        if self._container is not None:
            self._container.kill()

    def end(self) -> None:
        """Kill it, and hang up on a guest that does not say so in time: a guest that was taken over
        could keep whoever waits for the end waiting."""
        self.kill()
        timer = threading.Timer(_END_TIMEOUT, self._hang_up)
        timer.daemon = True
        timer.start()

    def _hang_up(self) -> None:
        if not self._over.is_set():
            self._live.hang_up()

    def discard(self, *, image: bool) -> None:
        """Remove what it leaves in a guest that goes on; its ``image``, too, unless another
        container is about to use that."""
        self._engine.discard(self.plan, self._live.connection(self._number), image=image)

    def signal(self, number: int) -> None:
        """Send a signal to its first process."""
        command = self._running().runtime.signal(number)
        run_command(self._live.connection(self._number), command, "send the signal")

    def freeze(self, *, frozen: bool) -> None:
        """Freeze or thaw its processes, for a container that is not alone in its guest."""
        command = freeze_command(self.plan.run_id, frozen=frozen)
        run_command(self._live.connection(self._number), command, "freeze the container")

    def counters(self) -> dict[str, int]:
        """The counters of its cgroup by name; bytes, counts and microseconds."""
        command = counters_command(self.plan.run_id)
        text = run_command(self._live.connection(self._number), command, "read the counters")
        found = {}
        for line in text.decode("ascii", "replace").splitlines():
            name, _, value = line.partition(" ")
            if value.isascii() and value.isdigit() and len(value) < 20:
                found[name] = int(value)
        return found

    def execute(
        self,
        argv: Sequence[str],
        *,
        env: Sequence[str] = (),
        workdir: str | None = None,
        user: tuple[int, int] | None = None,
        terminal: TerminalSize | None = None,
    ) -> RemoteProcess:
        """Execute one more process in it, confined like its first one."""
        container = self.plan.container
        if user is not None and 0 in user and container.uid != 0:
            raise Refused(
                "root is refused: the container does not run as root either",
                hint="leave --user out, or name another uid",
            )
        process = oci_process(
            container, argv, env=env, workdir=workdir, user=user, terminal=terminal is not None
        )
        command = self._running().runtime.execute(process)
        return self._live.connection(self._number).execute(command, terminal=terminal)

    def archive(self, path: str, name: str, *, follow: bool) -> RemoteProcess:
        """Write a tar of ``path`` in it to stdout, as ``name``."""
        self._running()
        command = archive_command(self.plan.run_id, self._pid, path, name, follow=follow)
        return self._live.connection(self._number).execute(command)

    def extract(self, path: str, *, keep: bool, directory: bool) -> RemoteProcess:
        """Unpack the tar on stdin at ``path`` in it: as its own user, or as root with the owners
        and modes of the archive."""
        self._running()
        owner = None if keep else (self.plan.container.uid, self.plan.container.gid)
        command = extract_command(
            self.plan.run_id, self._pid, path, owner=owner, directory=directory
        )
        return self._live.connection(self._number).execute(command)

    def _running(self) -> RunningContainer:
        if self._container is None:
            raise EngineError("the container has not been started yet", hint="try again")
        return self._container
