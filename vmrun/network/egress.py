"""What the containers of one network may reach: every connection and query of theirs comes here.

Four ways lead out, and all of them come to the same decision (:mod:`vmrun.network.dialer`): the
HTTP proxy, the SOCKS proxy and the DNS server at the network's gateway, and connections to any
other address.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from vmrun.model.errors import ChannelError
from vmrun.model.network import DNS_PORT, PROXY_PORT, SOCKS_PORT, Allow
from vmrun.network import names_tcp, proxy_http, proxy_socks, transparent
from vmrun.network.decisions import Decision, Decisions, Record
from vmrun.network.dialer import Connect, Dialer, Resolve, connect_to
from vmrun.network.guarded import Ways
from vmrun.network.guest_stream import End, GuestStream
from vmrun.network.names import NameServer, SyntheticNames
from vmrun.network.resolver import Resolver
from vmrun.network.watch import Watch

MAX_STREAMS = 64
"""Connections that one container may have at a time."""


class Egress:
    """Decides for the containers of one network, whose gateway has the address ``gateway``.

    ``rules_of`` gives the rules of the container at an address of the wire; of an unknown address
    it must give none. ``names`` are the network's containers by name, in lower case; it may change
    while containers come and go. ``record`` writes a decision down; where it raises, nothing is
    connected. ``resolve`` and ``connect`` are how this host resolves a name and connects to an
    address that has been judged. ``streams`` connections may a container have at a time.
    """

    def __init__(
        self,
        rules_of: Callable[[str], tuple[Allow, ...]],
        names: Mapping[str, str],
        record: Record,
        *,
        gateway: str,
        resolve: Resolve | None = None,
        connect: Connect = connect_to,
        streams: int = MAX_STREAMS,
    ) -> None:
        self._rules_of = rules_of
        self._gateway = gateway
        self._decisions = Decisions(record)
        self._watch = Watch()
        synthetic = SyntheticNames(frozenset((gateway, *names.values())))
        self._names = NameServer(names, synthetic)
        dialer = Dialer(rules_of, self._decisions, resolve=resolve or Resolver(), connect=connect)
        self._ways = Ways(dialer, synthetic, self._watch)
        self._streams = streams
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def stream(self, stream: GuestStream) -> None:
        """Serve one connection of a container until it is over, and close it.

        Raises what ``record`` raises.
        """
        container, there = stream.peer.address, stream.destination
        try:
            with contextlib.suppress(ChannelError, OSError), self._place(container) as free:
                if not free:
                    self._deny(container, "", there, "too many connections")
                elif there.address != self._gateway:
                    transparent.serve(stream, self._ways)
                elif there.port == PROXY_PORT:
                    proxy_http.serve(stream, self._ways)
                elif there.port == SOCKS_PORT:
                    proxy_socks.serve(stream, self._ways)
                elif there.port == DNS_PORT:
                    names_tcp.serve(stream, lambda data: self._answer(container, data), self._watch)
                else:
                    self._deny(container, transparent.VIA, there, "no service")
        finally:
            stream.close()

    def datagram(self, source: End, data: bytes) -> bytes | None:
        """The answer to a DNS query; ``None`` for what is none. Raises what ``record`` raises."""
        return self._answer(source.address, data)

    def flush(self) -> None:
        """Record what has been counted so far. Raises what ``record`` raises."""
        self._decisions.flush()

    def close(self) -> None:
        """End every connection and record what has been counted. Raises what ``record`` raises."""
        self._watch.close()
        self._decisions.close()

    def _answer(self, container: str, data: bytes) -> bytes | None:
        answer = self._names.answer(container, self._rules_of(container), data)
        if answer.reason:
            self._decisions.deny(Decision(container, "dns", answer.denied, "", 0, answer.reason))
        return answer.message

    def _deny(self, container: str, via: str, there: End, reason: str) -> None:
        self._decisions.deny(Decision(container, via, "", there.address, there.port, reason))

    @contextlib.contextmanager
    def _place(self, container: str) -> Iterator[bool]:
        """Whether the container may have one more connection, which it then has."""
        with self._lock:
            free = self._open[container] < self._streams
            self._open[container] += 1
        try:
            yield free
        finally:
            with self._lock:
                self._open[container] -= 1
                if not self._open[container]:
                    del self._open[container]
