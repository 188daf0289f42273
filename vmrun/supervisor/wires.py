"""The networks inside one guest: a relay each, what their containers may reach, and who may reach
them. Everything travels through the guest's SSH connection and is decided on the host."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping

from vmrun.engine.container import run_command
from vmrun.model.errors import ChannelError, StateError, VmrunError
from vmrun.model.network import Allow, NetworkPlan, Publish
from vmrun.model.plan import Plan
from vmrun.model.report import Removed
from vmrun.network.egress import Egress
from vmrun.network.mux import Mux
from vmrun.network.publish import Publisher
from vmrun.network.stream import Stream
from vmrun.network.wire import attach_command, relay_command
from vmrun.planning.network import lay_command, remove_command
from vmrun.run.ports import Connection

_READY_TIMEOUT = 30.0
_CONNECT_TIMEOUT = 20.0
_RECEIPTS = 64
"""Ports given back before the guest ends of which its receipt tells: all that one run can have."""

Journal = Callable[[str, Mapping[str, str]], object]


class _Network:
    """One network: its relay, and the rules of each of its containers by address."""

    def __init__(self, plan: NetworkPlan, connection: Connection, journal: Journal) -> None:
        self.plan = plan
        self.members: dict[str, str] = {}
        self._rules: dict[str, tuple[Allow, ...]] = {}
        self._runs: dict[str, str] = {}
        self._connection = connection
        self._journal = journal
        self._names = dict(plan.names)
        self._egress = Egress(
            lambda address: self._rules.get(address, ()),
            self._names,
            self._record,
            gateway=plan.gateway,
        )
        command = relay_command(plan.gateway, plan.prefix, plan.listen)
        self.mux = Mux(
            connection.execute(command),
            on_stream=self._egress.stream,
            on_datagram=self._egress.datagram,
            on_end=self._lost,
        )
        try:
            self.pid = self.mux.wait_ready(_READY_TIMEOUT)
        except VmrunError:
            self.close()
            raise

    def join(self, plan: NetworkPlan, run_id: str) -> None:
        """The rules of one more container, and the names that it brings along. Ports that nobody
        here was allowed before are reached through the proxies only. Raises :class:`StateError`
        when another container has its address."""
        holder = self._runs.get(plan.address, run_id)
        if holder != run_id and holder in self.members:
            raise StateError(
                f"{plan.address} of network {self.plan.network} is in use by run {holder}",
                hint="stop that run first: vmrun stop",
            )
        self._names.update(plan.names)
        self.members[run_id] = plan.address
        self._runs[plan.address] = run_id
        self._rules[plan.address] = plan.allow

    def leave(self, run_id: str) -> bool:
        """A container has ended; whether it was the last one."""
        address = self.members.pop(run_id, "")
        self._rules.pop(address, None)
        # What was counted of it is its own, and not the next one's at that address.
        with contextlib.suppress(VmrunError):
            self._egress.flush()
        return not self.members

    def close(self) -> None:
        """End every connection, and the relay. Never raises."""
        self.mux.close()
        with contextlib.suppress(VmrunError):
            self._egress.close()

    def _record(self, event: str, fields: Mapping[str, str]) -> None:
        run_id = self._runs.get(fields.get("container", ""), "")
        self._journal(event, {"run": run_id, **fields})

    def _lost(self, error: VmrunError) -> None:
        """The wire has ended by itself: its containers reach nothing until they are started again.
        Of a guest that has gone, and took its networks along, others tell."""
        with contextlib.suppress(VmrunError):
            run_command(self._connection, "true", "answer")
            for run_id in tuple(self.members):
                self._journal(
                    "network.lost",
                    {"run": run_id, "network": self.plan.network, "error": error.message},
                )


class Wires:
    """The networks of one guest; see :class:`vmrun.supervisor.contained.Wire`.

    ``connection`` gives the connection to the guest; until there is one only :meth:`reserve` works.
    """

    def __init__(self, connection: Callable[[], Connection], journal: Journal) -> None:
        self._connection = connection
        self._journal = journal
        self._networks: dict[str, _Network] = {}
        self._publishers: dict[str, list[Publisher]] = {}
        self._released: deque[Removed] = deque(maxlen=_RECEIPTS)
        self._closed = False
        self._lock = threading.Lock()
        # Held while networks are made and removed in the guest, which takes its time; connections
        # to containers do not wait for that.
        self._laying = threading.Lock()

    def reserve(self, plan: Plan) -> tuple[Publish, ...]:
        """Take the ports of the host that a run publishes, before anything is made for it; returns
        them as they are. Connections are refused until its container is attached. Raises
        :class:`UsageError` for a port that cannot be had."""
        network = plan.container.network
        if network is None:
            return ()
        taken = self._publishers.setdefault(plan.run_id, [])
        try:
            for publish in network.publish:
                taken.append(Publisher(publish, self._connector(network, plan.run_id, publish)))
        except VmrunError:
            self.release(plan.run_id)
            raise
        return tuple(
            Publish(publish.address, publisher.port, publish.container_port)
            for publish, publisher in zip(network.publish, taken, strict=True)
        )

    def lay(self, plan: Plan) -> None:
        """Make the network that a run needs, if it is not there, before its container is made."""
        network = plan.container.network
        if network is None:
            return
        connection = self._connection()
        with self._laying:
            with self._lock:
                known = self._networks.get(network.network)
            if known is None or known.mux.failure is not None:
                command = lay_command(network, plan.container.hostname)
                run_command(connection, command, "write the network's files")
                if known is not None:
                    known.close()
                known = _Network(network, connection, self._journal)
                with self._lock:
                    closed = self._closed
                    self._networks[network.network] = known
                if closed:
                    known.close()
                    raise ChannelError("the guest is ending")
            known.join(network, plan.run_id)

    def attach(self, plan: Plan, pid: int) -> None:
        """Connect a container that waits at the gate."""
        network = plan.container.network
        if network is None:
            return
        with self._lock:
            known = self._networks.get(network.network)
        if known is None:
            raise ChannelError("the guest is ending")
        command = attach_command(known.pid, pid, network.address, network.prefix, network.gateway)
        run_command(self._connection(), command, "connect the container")

    def detach(self, plan: Plan) -> None:
        """Its container has ended for good; the last one of a network takes it along."""
        network = plan.container.network
        self._released.extend(self.release(plan.run_id))
        if network is None:
            return
        with self._laying:
            with self._lock:
                known = self._networks.get(network.network)
            if known is None or not known.leave(plan.run_id):
                return
            with self._lock:
                self._networks.pop(network.network, None)
            known.close()
            with contextlib.suppress(VmrunError):
                command = remove_command(network)
                run_command(self._connection(), command, "remove the network's files")

    def release(self, run_id: str) -> tuple[Removed, ...]:
        """Give the ports of a run back; says of each whether it is free."""
        removed = []
        for publisher in self._publishers.pop(run_id, []):
            gone = True
            try:
                publisher.close()
            except VmrunError:
                gone = False
            address = publisher.address
            shown = f"[{address}]" if ":" in address else address
            removed.append(Removed("port", f"{shown}:{publisher.port}", gone))
        return tuple(removed)

    def close(self) -> tuple[Removed, ...]:
        """End all of it; says of each port that was published whether it is free."""
        with self._lock:
            self._closed = True
            networks, self._networks = list(self._networks.values()), {}
        for run_id in list(self._publishers):
            self._released.extend(self.release(run_id))
        for network in networks:
            network.close()
        return tuple(self._released)

    def _connector(
        self, network: NetworkPlan, run_id: str, publish: Publish
    ) -> Callable[[], Stream]:
        def connect() -> Stream:
            with self._lock:
                known = self._networks.get(network.network)
            if known is None or run_id not in known.members:
                raise ChannelError("the container has not been started yet")
            return known.mux.connect(network.address, publish.container_port, _CONNECT_TIMEOUT)

        return connect
