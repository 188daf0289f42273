"""dockerd's socket in the guest, as a Unix socket on the host for docker-py.

The socket lies in a directory that only its owner can enter and lives as long as the engine
uses it. Each connection to it is one ``guest dial`` in the guest; docker-py keeps its
connections open, so there are few.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path

from vmrun.engine.guest import dial_command
from vmrun.engine.pump import CHUNK, ErrorTail
from vmrun.model.errors import ChannelError, VmrunError
from vmrun.run.ports import Connection, RemoteProcess

MAX_CONNECTIONS = 4
"""sshd takes ten sessions a connection; the gate, the attached streams and a kill need theirs."""


class Tunnel:
    """Listens on :attr:`path` until :meth:`close`."""

    def __init__(self, connection: Connection, scratch: Path | None = None) -> None:
        self._connection = connection
        self._directory = tempfile.TemporaryDirectory(prefix="t-", dir=scratch)  # mode 0700
        self.path = Path(self._directory.name) / "docker.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(MAX_CONNECTIONS)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._joints: set[_Joint] = set()
        self._closed = False
        threading.Thread(target=self._accept, name="docker-tunnel", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._free.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        joint: _Joint | None = None
        try:
            joint = _Joint(client, self._connection.execute(dial_command()))
            with self._lock:
                self._joints.add(joint)
                closed = self._closed
            if not closed:
                joint.run()
        except VmrunError:
            pass  # the client sees its connection end, and says so
        finally:
            if joint is not None:
                joint.close()
                with self._lock:
                    self._joints.discard(joint)
            client.close()
            self._free.release()

    def close(self) -> None:
        """End every connection and remove the socket."""
        with self._lock:
            self._closed = True
            joints = list(self._joints)
        # A thread in accept(2) is not woken by close(2), but by shutdown(2).
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for joint in joints:
            joint.close()
        self._directory.cleanup()


class _Joint:
    """One client of the socket, joined with one process in the guest."""

    def __init__(self, client: socket.socket, process: RemoteProcess) -> None:
        self._client = client
        self._process = process
        self._errors = ErrorTail(process.read_error)

    def run(self) -> None:
        """Move bytes until dockerd has closed its side."""
        threading.Thread(target=self._forward, name="docker-request", daemon=True).start()
        with contextlib.suppress(OSError):
            while data := self._process.read(CHUNK):
                self._client.sendall(data)

    def _forward(self) -> None:
        try:
            while data := self._client.recv(CHUNK):
                self._process.write(data)
            self._process.close_stdin()
        except (OSError, ChannelError):
            self.close()

    def close(self) -> None:
        """End both sides; wakes whoever reads or writes them."""
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        self._process.close()
