"""The docker engine: the guest's dockerd, driven with docker-py over the SSH connection.

dockerd checks what it is given itself: it names an image by its config's digest and refuses a
layer whose unpacked bytes do not hash to the diff_id in that config. So the bytes that are
hashed in the guest are the bytes that are imported, with no second copy in its memory; what it
then says it has is compared with the plan.
"""

from __future__ import annotations

from pathlib import Path

from vmrun.engine import guest
from vmrun.engine.attach import AttachedOutput, request
from vmrun.engine.container import (
    Killer,
    Outputs,
    connect_stdin,
    not_started,
    run_command,
    watch_resizes,
)
from vmrun.engine.daemon import API_VERSION, Daemon
from vmrun.engine.gatekeeper import Gatekeeper
from vmrun.engine.pump import InputPump
from vmrun.engine.runtime import Runtime
from vmrun.engine.watchdog import Watchdog
from vmrun.model.errors import EngineError
from vmrun.model.live import ContainerReading
from vmrun.model.plan import Plan
from vmrun.model.report import Usage
from vmrun.run.ports import Connection, RemoteProcess, Streams

DAEMON_TIMEOUT = 180.0
DELIVERY_TIMEOUT = 900.0
CALL_TIMEOUT = 120.0


class DockerEngine:
    """One container of a guest of the docker flavour; see :class:`vmrun.run.ports.Engine`."""

    def __init__(
        self,
        *,
        daemon_timeout: float = DAEMON_TIMEOUT,
        delivery_timeout: float = DELIVERY_TIMEOUT,
        call_timeout: float = CALL_TIMEOUT,
        scratch: Path | None = None,
    ) -> None:
        """``scratch`` is where its socket goes; teardown removes a run's own directory."""
        self._scratch = scratch
        self._daemon_timeout = daemon_timeout
        self._delivery_timeout = delivery_timeout
        self._call_timeout = call_timeout
        self._daemon: Daemon | None = None
        self._delivered = False

    def deliver(self, plan: Plan, connection: Connection) -> int:
        """Load the image into dockerd; returns the bytes of its blobs."""
        daemon = Daemon(connection, self._call_timeout, scratch=self._scratch)
        try:
            daemon.wait_until_ready(self._daemon_timeout)
            message = "the image was not delivered"
            with Watchdog(self._delivery_timeout, daemon.close, message):
                moved = daemon.load(plan.image)
            daemon.check(plan.image)
        except BaseException:
            daemon.close()
            raise
        self._daemon = daemon
        self._delivered = True
        return moved

    def start(self, plan: Plan, connection: Connection, streams: Streams) -> DockerContainer:
        """Create the container, attach, start it, and put the gate's reader on it; again, when it
        has ended."""
        if not self._delivered:
            raise EngineError("docker cannot start an image that was not delivered")
        daemon, self._daemon = self._daemon, None
        again = daemon is None
        if daemon is None:
            daemon = Daemon(connection, self._call_timeout, scratch=self._scratch)
        try:
            if again:
                daemon.remove(plan)
            return self._started(daemon, plan, connection, streams)
        except BaseException:
            daemon.close()
            raise

    def discard(self, plan: Plan, connection: Connection, *, image: bool = True) -> None:
        """Remove a container that has ended, and its image unless another one uses it."""
        daemon = Daemon(connection, self._call_timeout, scratch=self._scratch)
        try:
            daemon.remove(plan)
            if image:
                daemon.remove_image(plan.image)
        finally:
            daemon.close()
        run_command(connection, guest.discard_command(plan.run_id), "remove the cgroup")

    def _started(
        self, daemon: Daemon, plan: Plan, connection: Connection, streams: Streams
    ) -> DockerContainer:
        container_id = daemon.create(plan)
        attached = self._attach(container_id, plan, connection)
        pid = daemon.start(container_id)
        if streams.terminal is not None:
            daemon.resize(container_id, streams.terminal)
        command = guest.gate_command(str(pid), plan.run_id, plan.container.limits)
        gatekeeper = Gatekeeper(connection.execute(command))
        killer = Killer(connection, plan.run_id)
        return DockerContainer(container_id, daemon, gatekeeper, killer, attached, streams)

    def _attach(
        self, container_id: str, plan: Plan, connection: Connection
    ) -> tuple[RemoteProcess, AttachedOutput]:
        # Before the start, or the first output would be lost.
        process = connection.execute(guest.dial_command())
        output = AttachedOutput(process)
        wanted = request(container_id, version=API_VERSION, stdin=plan.container.interactive)
        with Watchdog(self._call_timeout, process.close, "dockerd did not attach"):
            process.write(wanted)
            output.accept()
        return process, output


class DockerContainer:
    """A container at or past the gate; see :class:`vmrun.run.ports.RunningContainer`."""

    def __init__(
        self,
        container_id: str,
        daemon: Daemon,
        gatekeeper: Gatekeeper,
        killer: Killer,
        attached: tuple[RemoteProcess, AttachedOutput],
        streams: Streams,
    ) -> None:
        self._id = container_id
        self._daemon = daemon
        self._gatekeeper = gatekeeper
        self._killer = killer
        self._attached, self._output = attached
        self._streams = streams
        self._outputs = Outputs(streams, self.kill)
        self._input: InputPump | None = None
        watch_resizes(streams, lambda size: daemon.resize(container_id, size))

    @property
    def runtime(self) -> Runtime:
        """How the runc below dockerd knows it."""
        return Runtime.docker(self._id)

    def reading(self, timeout: float) -> ContainerReading:
        """How the kernel says it is confined."""
        reading = self._gatekeeper.reading(timeout)
        if reading is None:
            raise not_started(self._gatekeeper, self._daemon.error_of(self._id))
        return reading

    def release(self) -> None:
        """Open the gate; only then are the host's streams touched."""
        output, outputs = self._output, self._outputs
        self._gatekeeper.open()
        if self._streams.terminal is None:
            outputs.run("output", lambda: output.frames(outputs.stdout.put, outputs.stderr.put))
        else:
            outputs.run("stdout", lambda: outputs.stdout.copy(output.raw))
        self._input = connect_stdin(self._streams, self._attached)

    def wait(self) -> int:
        """The container's exit status, as dockerd keeps it."""
        try:
            self._gatekeeper.usage(None)  # the gate speaks when the container has ended
            self._outputs.join(self._killer.asked)
            status = self._daemon.exit_status(self._id)
        finally:
            if self._input is not None:
                self._input.stop()
            self._attached.close()
            self._daemon.close()
        return self._outputs.exit_status(status)

    def usage(self) -> Usage:
        """What its cgroup counted."""
        return self._gatekeeper.usage(None)

    def kill(self) -> None:
        """Kill all of it at once."""
        self._killer.kill()
