"""What a live container can be told, whoever started it: signals, pause, stop, more processes."""

from __future__ import annotations

import contextlib
import threading
import time

from vmrun.hypervisor.process import cpu_seconds, proportional_memory
from vmrun.model.errors import GuestError, StateError, VmrunError
from vmrun.model.signals import KILL
from vmrun.model.stats import Stats
from vmrun.supervisor.contained import Contained
from vmrun.supervisor.live import LiveGuest

_KILL_TIMEOUT = 30.0


class Controls:
    """The controls of one container. ``shared``: its guest has others, too."""

    def __init__(self, contained: Contained, live: LiveGuest, *, shared: bool) -> None:
        self.contained = contained
        self.asked_to_stop = threading.Event()
        self.ended = threading.Event()
        self.status = 0
        self._live = live
        self._shared = shared
        self.paused = False

    def end(self, status: int) -> None:
        """The container has ended for good."""
        self.status = status
        self.ended.set()

    def send_signal(self, number: int) -> None:
        """Send a signal; SIGKILL kills all of the container's processes."""
        if number == KILL:
            self.asked_to_stop.set()
            self._thaw()
            self.contained.kill()
            return
        self._must_not_be_paused()
        self.contained.signal(number)

    def stop(self, timeout: float, *, number: int) -> None:
        """Ask it to end with a signal, and kill it when it has not after ``timeout`` seconds."""
        self.asked_to_stop.set()
        self._thaw()
        with contextlib.suppress(VmrunError):  # one that is just ending cannot be signalled
            self.contained.signal(number)
        if not self.ended.wait(timeout):
            self.contained.kill()
        if not self.ended.wait(_KILL_TIMEOUT):
            raise GuestError(
                "the container does not end, even by SIGKILL",
                hint="end its guest: vmrun rm --force",
            )

    def pause(self) -> None:
        """Stop it where it is: all of its guest, or its processes where the guest has others."""
        if self.paused:
            raise StateError("it is paused already", hint="vmrun unpause")
        if self._shared:
            self.contained.freeze(frozen=True)
        else:
            self._live.pause()
        self.paused = True

    def unpause(self) -> None:
        """Let it go on."""
        if not self.paused:
            raise StateError("it is not paused", hint="see 'vmrun ps'")
        self._thaw()

    def stats(self) -> Stats:
        """What it uses now."""
        self._must_not_be_paused()
        counters = self.contained.counters()
        limits = self.contained.plan.container.limits
        pid = self._live.provisioned.guest.pid
        return Stats(
            memory=counters.get("memory.current", 0),
            memory_limit=limits.memory,
            pids=counters.get("pids.current", 0),
            pids_limit=limits.pids,
            cpu_seconds=counters.get("usage_usec", 0) / 1e6,
            cpus=limits.cpus,
            guest_memory=self._live.order.plan.memory.guest,
            qemu_memory=proportional_memory(pid),
            qemu_cpu_seconds=cpu_seconds(pid),
            read_at=time.time(),
        )

    def _thaw(self) -> None:
        if not self.paused:
            return
        if self._shared:
            self.contained.freeze(frozen=False)
        else:
            self._live.unpause()
        self.paused = False

    def _must_not_be_paused(self) -> None:
        if self.paused or self._live.paused:
            raise StateError("it is paused", hint="vmrun unpause")
