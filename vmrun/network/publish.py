"""A port of the host whose connections go to a container."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vmrun.model.errors import StateError, UsageError, VmrunError
from vmrun.model.network import Publish
from vmrun.network.splice import Splice, prepare_reset
from vmrun.network.stream import Stream

CONNECTIONS_MAX = 128
"""At a time; more wait to be accepted."""

_CLOSE_SECONDS = 5.0
_LOOK_SECONDS = 0.5


class Publisher:
    """Listens from its making until :meth:`close`; ``connect`` makes the connection to the
    container for each one accepted, and may raise any :class:`VmrunError`: the client then sees a
    reset. Raises :class:`UsageError` for an address or port that cannot be had."""

    def __init__(self, publish: Publish, connect: Callable[[], Stream]) -> None:
        self._connect = connect
        self._listener = _listen(publish)
        # The listener's identity in proc(5), where its end can be seen.
        self._table = Path("/proc/net", _TABLES[self._listener.family])
        self._inode = os.fstat(self._listener.fileno()).st_ino
        self.address = publish.address
        self.port = int(self._listener.getsockname()[1])
        """The port of the host; which one is known only now if any was asked for."""
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, Splice | None] = {}
        self._idle = threading.Condition(self._lock)
        self._closed = False
        self._acceptor = threading.Thread(target=self._accept, name="publish", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while self._wait_for_place():
            try:
                client = self._accept_one()
            except OSError as error:
                self._free.release()
                if self._closed or error.errno not in _TRANSIENT:
                    return
                time.sleep(0.1)
                continue
            with self._lock:
                self._clients[client] = None
                closed = self._closed
            if closed:
                self._forget(client)
                return
            serve = threading.Thread(target=self._serve, args=(client,), daemon=True)
            try:
                serve.start()
            except RuntimeError:  # the process has as many threads as it may have
                self._forget(client)

    def _wait_for_place(self) -> bool:
        """Wait until there may be one more connection; False when it is over."""
        while not self._free.acquire(timeout=_LOOK_SECONDS):
            if self._closed:
                return False
        return True

    def _accept_one(self) -> socket.socket:
        client, _ = self._listener.accept()
        return client

    def _serve(self, client: socket.socket) -> None:
        try:
            splice = Splice(self._connect(), client)
            with self._lock:
                self._clients[client] = splice
                closed = self._closed
            if closed:
                splice.close()
            splice.run()
        except VmrunError:
            _reset(client)
        finally:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        client.close()
        with self._idle:
            self._clients.pop(client, None)
            self._idle.notify_all()
        self._free.release()

    def close(self) -> None:
        """End every connection and give the port back. :class:`StateError` if it is still held
        by this process or one that it has made."""
        with self._lock:
            self._closed = True
            clients = dict(self._clients)
        # A thread in accept(2) is not woken by close(2), but by shutdown(2).
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for client, splice in clients.items():
            if splice is not None:
                splice.close()
            else:  # a thread still connects to the container, and finds it closed then
                _reset(client)
        self._acceptor.join(_CLOSE_SECONDS)
        self._listener.close()
        with self._idle:
            ended = self._idle.wait_for(lambda: not any(self._clients.values()), _CLOSE_SECONDS)
        if not ended or self._acceptor.is_alive() or _exists(self._inode, self._table):
            raise StateError(
                f"port {self.port} of {self.address} is still in use",
                hint=f"see who holds it: ss -ltnp sport = :{self.port}",
            )


def _reset(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        prepare_reset(client)
    client.close()


_TRANSIENT = {errno.EINTR, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def _listen(publish: Publish) -> socket.socket:
    six = ipaddress.ip_address(publish.address).version == 6
    listener = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of a former holder that linger in TIME_WAIT do not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((publish.address, publish.host_port))
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot publish port {publish.host_port} of {publish.address}: {error.strerror}",
            hint=_HINTS.get(error.errno or 0, "choose another --publish address or port"),
        ) from error
    return listener


_HINTS = {
    errno.EADDRINUSE: "choose another host port, or 0 for any that is free; `ss -ltnp` shows "
    "who holds it",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start are root's; choose a higher one",
    errno.EADDRNOTAVAIL: "the host has no such address; `ip address` shows those it has",
}


_TABLES = {socket.AF_INET: "tcp", socket.AF_INET6: "tcp6"}
_INODE_FIELD = 9


def _exists(inode: int, table: Path) -> bool:
    """Whether the kernel still has a TCP socket of that inode."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError as error:
        raise StateError(f"cannot see whether a port is free: {error}") from error
    return any(line.split()[_INODE_FIELD] == str(inode) for line in lines)
