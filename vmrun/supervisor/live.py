"""A live guest: created, booted, with an identity of its own and an authenticated connection."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from vmrun.channel.control import Identity
from vmrun.channel.keys import ClientKey
from vmrun.channel.ssh import SshConnection, open_connection
from vmrun.hypervisor.guest import Hypervisor
from vmrun.model.base import Base
from vmrun.model.errors import ChannelError, GuestError, HardeningError
from vmrun.model.plan import GuestPlan, Plan
from vmrun.model.report import Assertion, Removed
from vmrun.planning.domain_xml import Sockets, domain_xml, guest_metadata
from vmrun.policy.confinement import check_qemu, failed
from vmrun.run.clock import PhaseClock
from vmrun.run.directories import StateDirectories
from vmrun.run.provision import Provisioned, boot_failure, create_guest, wait_for_hello
from vmrun.run.state import GuestDirectory
from vmrun.run.teardown import Teardown

_IDENTIFY_TIMEOUT = 60.0
_TAIL = 20


@dataclass(frozen=True, slots=True)
class GuestOrder:
    """What it takes to make a guest: ``hostname`` is its name inside, ``metadata`` what its domain
    says of whom it serves."""

    plan: GuestPlan
    base: Base
    hostname: str
    metadata: Mapping[str, str]


def order_of(plan: Plan) -> GuestOrder:
    """The guest of a run that has one of its own."""
    return GuestOrder(plan.guest, plan.base, plan.container.hostname, guest_metadata(plan))


class LiveGuest:
    """A guest with its identity. Connections are opened when they are first needed and kept."""

    def __init__(
        self,
        order: GuestOrder,
        directory: GuestDirectory,
        provisioned: Provisioned,
        *,
        client_key: ClientKey,
        host_key: str,
    ) -> None:
        self.order = order
        self.directory = directory
        self.provisioned = provisioned
        self.client_key = client_key
        self.host_key = host_key
        self.paused = False
        self.lost = threading.Event()
        self.turn = threading.Lock()
        """Whose turn it is to bring a container in, start it or clear it away: one at a time is
        what memory is planned for, and an image must not go while it is about to be used."""
        self._sockets = Sockets.within(directory.path, ssh_ports=order.plan.ssh_ports)
        self._connections: dict[int, SshConnection] = {}
        self._lock = threading.Lock()

    def keep_lease(self, on_lost: Callable[[], None]) -> None:
        """Renew the lease until :meth:`close`; ``on_lost`` is called when the guest has not
        answered for a whole lease."""

        def lost() -> None:
            self.lost.set()
            self.hang_up()
            on_lost()

        self.provisioned.control.keep_lease(self.order.plan.lease, on_lost=lost)

    def connection(self, number: int = 0) -> SshConnection:
        """A connection: the guest has one port for each, so ``number`` counts around."""
        port = number % len(self._sockets.ssh)
        with self._lock:
            if self.lost.is_set():
                raise ChannelError("the guest does not answer any more", hint="see 'vmrun ps -a'")
            if self.paused:
                raise ChannelError("the guest is paused", hint="vmrun unpause")
            if port not in self._connections:
                # The others stand in for one that the guest does not serve.
                sockets = [*self._sockets.ssh[port:], *self._sockets.ssh[:port]]
                self._connections[port] = open_connection(
                    sockets[:1] if self._connections else sockets,
                    client_key=self.client_key,
                    host_key=self.host_key,
                )
            return self._connections[port]

    def pause(self) -> None:
        """Stop its processors; nothing in the guest can get in the way of that."""
        with self._lock:
            self.provisioned.control.pause()
            self.provisioned.guest.suspend()
            self.paused = True

    def unpause(self) -> None:
        """Let its processors go on."""
        with self._lock:
            self.provisioned.guest.resume()
            self.provisioned.control.resume()
            self.paused = False

    def console_tail(self) -> str:
        """The last lines of its console."""
        return self.provisioned.guest.console_tail(_TAIL)

    def close(self) -> tuple[Removed, ...]:
        """End the connections and stop renewing the lease."""
        self.provisioned.control.close()
        self.hang_up()
        return ()

    def hang_up(self) -> None:
        """End the connections, and with them whatever waits for an answer."""
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()


def bring_up(
    order: GuestOrder,
    directory: GuestDirectory,
    directories: StateDirectories,
    clock: PhaseClock,
    teardown: Teardown,
    *,
    on_lost: Callable[[], None] = lambda: None,
    prepare: Callable[[], None] = lambda: None,
    unlocked: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[LiveGuest, tuple[Assertion, ...]]:
    """Create a guest and take it to the point where containers can be started in it.

    Returns it with what was asserted of its QEMU. ``on_lost`` is called when it does not answer
    any more, which also ends its connections. ``prepare`` makes the disks with its data before the
    hypervisor is opened. ``unlocked`` lets the hypervisor, once it is open, know their keys while
    it creates the guest.

    Raises :class:`VmrunError`; whatever was made by then is undone by ``teardown``.
    """
    sockets = Sockets.within(directory.path, ssh_ports=order.plan.ssh_ports)
    with clock.phase("provision"):
        prepare()
        xml = domain_xml(order.plan, order.base, sockets, metadata=order.metadata)
        directory.open_to(order.plan.qemu_uid)
        hypervisor = Hypervisor.open(
            directory.intent.connect,
            root=directory.hypervisor_root,
            cache=directories.cache / "capabilities",
        )
        with unlocked():
            provisioned = create_guest(hypervisor, xml, order.plan, sockets, teardown)
    with clock.phase("boot"):
        wait_for_hello(provisioned, order.plan.boot_deadline)
    with clock.phase("identify"):
        live = _identify(order, directory, provisioned)
        teardown.add("connections", live.close)
        live.keep_lease(on_lost)
    with clock.phase("connect"):
        live.connection()
        assertions = must_hold(check_qemu(order.plan, provisioned.guest.qemu()))
    return live, assertions


def _identify(order: GuestOrder, directory: GuestDirectory, provisioned: Provisioned) -> LiveGuest:
    client_key = ClientKey.generate()
    identity = Identity(
        name=order.hostname,
        entropy=os.urandom(64),
        client_key=client_key.public_line,
        lease=order.plan.lease,
    )
    try:
        host_key = provisioned.control.identify(identity, time.monotonic() + _IDENTIFY_TIMEOUT)
    except GuestError as error:
        raise boot_failure(error, provisioned.guest.console_tail()) from error
    return LiveGuest(order, directory, provisioned, client_key=client_key, host_key=host_key)


def must_hold(assertions: tuple[Assertion, ...]) -> tuple[Assertion, ...]:
    """The assertions, if all of them hold; the workload is not started otherwise."""
    if broken := failed(assertions):
        raise HardeningError(
            "the confinement that was planned is not the one that was read: "
            + "; ".join(f"{a.subject} {a.name} is {a.actual}, not {a.expected}" for a in broken),
            hint="nothing of the workload was executed; see 'vmrun doctor'",
        )
    return assertions
