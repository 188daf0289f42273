"""The crun engine: an OCI bundle unpacked and run directly, with no daemon.

Commands cost 0.15 to 0.4 s each under emulation, so a run is two: the first receives the
image, unpacks it and becomes the gate; the second is crun itself, with the workload's streams.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

from vmrun.engine import guest
from vmrun.engine.blob import read_blob
from vmrun.engine.container import (
    USAGE_TIMEOUT,
    Killer,
    Outputs,
    connect_stdin,
    not_started,
    run_command,
    watch_resizes,
)
from vmrun.engine.gate import READY
from vmrun.engine.gatekeeper import Gatekeeper
from vmrun.engine.pump import InputPump
from vmrun.engine.runtime import Runtime
from vmrun.engine.watchdog import Watchdog
from vmrun.model.digest import Digest
from vmrun.model.errors import (
    ChannelError,
    DigestMismatch,
    EngineError,
    UnsafeLayer,
    VmrunError,
)
from vmrun.model.live import ContainerReading
from vmrun.model.plan import Plan
from vmrun.model.report import Usage
from vmrun.planning.container_spec import oci_spec
from vmrun.run.ports import Connection, RemoteProcess, Streams

DELIVERY_TIMEOUT = 600.0
COMMAND_TIMEOUT = 30.0

# Exit statuses of the guest tool (guest contract, "Guest tool").
_MISMATCH, _SHORT, _DISK, _REFUSED = 3, 4, 5, 6


class CrunEngine:
    """One run of crun in a guest of the minimal flavour; see :class:`vmrun.run.ports.Engine`."""

    def __init__(self, *, delivery_timeout: float = DELIVERY_TIMEOUT) -> None:
        self._delivery_timeout = delivery_timeout
        self._gatekeeper: Gatekeeper | None = None
        self._delivered = False

    def deliver(self, plan: Plan, connection: Connection) -> int:
        """Move the bundle into the guest and unpack it there; returns the bytes moved."""
        spec = oci_spec(
            plan.container,
            rootfs="rootfs",
            cgroup_path=f"{guest.cgroup_of(plan.run_id)}/container",
        )
        config = json.dumps(spec, separators=(",", ":")).encode()
        command = guest.bundle_command(
            plan.run_id,
            (Digest.of(config), len(config)),
            plan.image.layers,
            plan.container.limits,
        )
        process = connection.execute(command)
        gatekeeper = Gatekeeper(process)
        try:
            with Watchdog(self._delivery_timeout, process.close, "the image was not delivered"):
                moved = _send(process, config, plan)
                ready = gatekeeper.block(self._delivery_timeout, "the unpacked image")
        except VmrunError as error:
            failure = _delivery_failure(gatekeeper) if isinstance(error, ChannelError) else error
            process.close()
            raise failure from error
        if ready != READY:
            failure = _delivery_failure(gatekeeper)
            process.close()
            raise failure
        self._gatekeeper = gatekeeper
        self._delivered = True
        return moved

    def start(self, plan: Plan, connection: Connection, streams: Streams) -> CrunContainer:
        """Start the container up to the gate; again, when it has ended."""
        if not self._delivered:
            raise EngineError("crun cannot start an image that was not delivered")
        gatekeeper, self._gatekeeper = self._gatekeeper, None
        if gatekeeper is None:
            again = guest.again_command(plan.run_id, plan.container.limits)
            gatekeeper = Gatekeeper(connection.execute(again))
        command = guest.crun_command(plan.run_id, streams.terminal)
        process = connection.execute(command, terminal=streams.terminal)
        return CrunContainer(plan.run_id, connection, gatekeeper, process, streams)

    def discard(self, plan: Plan, connection: Connection, *, image: bool = True) -> None:
        """Remove the bundle of a container that has ended, which is its image as well."""
        run_command(connection, guest.discard_command(plan.run_id), "remove the bundle")


def _send(process: RemoteProcess, config: bytes, plan: Plan) -> int:
    process.write(config)
    moved = len(config)
    for layer in plan.image.layers:
        for chunk in read_blob(plan.image.blob_path(layer.blob.digest), layer.blob):
            process.write(chunk)
            moved += len(chunk)
    return moved


def _delivery_failure(gatekeeper: Gatekeeper) -> VmrunError:
    try:
        status = gatekeeper.process.wait(COMMAND_TIMEOUT)
    except VmrunError as error:
        return error
    said = gatekeeper.errors.text()
    reason = (said.splitlines() or [f"exit status {status}"])[-1].removeprefix("vmrun-guest: ")
    if status == _MISMATCH:
        return DigestMismatch(f"the guest received other bytes than were verified: {reason}")
    if status == _REFUSED:
        return UnsafeLayer(f"the guest refused to unpack the image: {reason}")
    if status == _DISK:
        return EngineError(
            f"the image does not fit into the guest: {reason}", hint="give it more: --memory"
        )
    if status == _SHORT:
        return EngineError(f"the image did not arrive whole: {reason}")
    return EngineError(f"the guest could not unpack the image: {reason}", details=said)


class CrunContainer:
    """A container at or past the gate; see :class:`vmrun.run.ports.RunningContainer`."""

    def __init__(
        self,
        run_id: str,
        connection: Connection,
        gatekeeper: Gatekeeper,
        process: RemoteProcess,
        streams: Streams,
    ) -> None:
        self._run_id = run_id
        self._connection = connection
        self._gatekeeper = gatekeeper
        self._process = process
        self._killer = Killer(connection, run_id)
        self._ended = threading.Event()
        self._streams = streams
        self._outputs = Outputs(streams, self.kill)
        self._input: InputPump | None = None
        watch_resizes(streams, process.resize)
        threading.Thread(target=self._watch, name="crun", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(VmrunError):  # wait() meets it in the caller's thread
            self._process.wait()
        self._ended.set()

    @property
    def runtime(self) -> Runtime:
        """How crun knows it."""
        return Runtime.crun(self._run_id)

    def reading(self, timeout: float) -> ContainerReading:
        """How the kernel says it is confined."""
        reading = self._gatekeeper.reading(timeout, ended=self._ended.is_set)
        if reading is None:
            raise not_started(self._gatekeeper, self._log())
        return reading

    def release(self) -> None:
        """Open the gate; only then are the host's streams touched. What crun itself has to say
        before comes out of its log."""
        process, outputs = self._process, self._outputs
        self._gatekeeper.open()
        outputs.run("stdout", lambda: outputs.stdout.copy(process.read))
        if self._streams.terminal is None:
            outputs.run("stderr", lambda: outputs.stderr.copy(process.read_error))
        self._input = connect_stdin(self._streams, process)

    def wait(self) -> int:
        """The container's exit status, or 128 and the signal that ended it."""
        try:
            status = self._process.wait()
            self._outputs.join(self._killer.asked)
        finally:
            if self._input is not None:
                self._input.stop()
            self._process.close()
        # 1 is what crun exits with when it fails itself.
        if status == 1 and (log := self._log()):
            raise EngineError(f"crun failed: {log.splitlines()[0][:300]}", details=log)
        return self._outputs.exit_status(status)

    def usage(self) -> Usage:
        """What its cgroup counted."""
        return self._gatekeeper.usage(USAGE_TIMEOUT)

    def kill(self) -> None:
        """Kill all of it at once."""
        self._killer.kill()

    def _log(self) -> str:
        """crun's error lines; empty when there are none or they cannot be had."""
        try:
            process = self._connection.execute(guest.crun_log_command(self._run_id))
            with Watchdog(COMMAND_TIMEOUT, process.close, "crun's log was not read"):
                text = b""
                while len(text) < 1 << 16 and (data := process.read(1 << 14)):
                    text += data
            process.close()
        except VmrunError:
            return ""
        return "\n".join(_errors_of(text.decode("utf-8", "replace")))


def _errors_of(log: str) -> Iterator[str]:
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            yield "".join(character if character.isprintable() else "?" for character in line)
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            message = str(entry.get("msg", ""))
            yield "".join(character if character.isprintable() else "?" for character in message)
