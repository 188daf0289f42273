"""The control port: a guest's identity, lease and power-off, as lines of text.

Implements the host's side of docs/reference/guest-contract.md. Everything the guest says is
untrusted: lines are capped, anything unexpected is a :class:`GuestError`.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vmrun.model.errors import GuestError

_MAX_LINE = 4096
_SEND_TIMEOUT = 10.0
"""Seconds for a request to leave: a guest that does not read its port blocks it."""
_CONTRACT = "vmrun/1"
_HOST_KEY = re.compile(r"identified (ssh-ed25519 [A-Za-z0-9+/]{68}={0,2})")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a guest says of itself first."""

    flavour: str
    kernel: str
    boot_id: str
    identified: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes one guest of a base: ``entropy`` is 64 bytes, ``client_key`` an OpenSSH
    public key line, ``lease`` in seconds."""

    name: str
    entropy: bytes
    client_key: str
    lease: int


class _Silence(GuestError):
    """Nothing came until the deadline."""


class ControlPort:
    """A connection to a guest's control port. Not thread-safe but for :meth:`keep_lease`.

    Whatever the guest does, each call ends at its deadline, give or take a second.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._paused = threading.Event()
        self._pings = 0

    def hello(self, deadline: float, *, alive: Callable[[], bool]) -> Hello:
        """Wait until the guest has booted; ``deadline`` is a :func:`time.monotonic` value.

        ``alive`` is asked about once a second, because QEMU may be gone without a word.
        """
        line = self._line(deadline, alive=alive)
        words = line.split(" ")
        if words[:2] != ["hello", _CONTRACT]:
            raise GuestError(
                f"the guest does not speak {_CONTRACT}: {line[:80]!r}",
                hint="rebuild the base: vmrun base build",
            )
        fields = dict(word.partition("=")[::2] for word in words[2:])
        return Hello(
            flavour=fields.get("flavour", ""),
            kernel=fields.get("kernel", ""),
            boot_id=fields.get("boot_id", ""),
            identified=fields.get("identified") == "1",
        )

    def identify(self, identity: Identity, deadline: float) -> str:
        """Give the guest its identity; returns its SSH host key line, to be pinned."""
        lines = (
            "identify",
            f"name {identity.name}",
            f"time {time.time():.6f}",
            f"entropy {identity.entropy.hex()}",
            f"client-key {identity.client_key}",
            f"lease {identity.lease}",
            "end",
        )
        with self._turn(deadline):
            self._send("".join(line + "\n" for line in lines), deadline)
            answer = self._answer(deadline)
        match = _HOST_KEY.fullmatch(answer)
        if match is None:
            raise GuestError(f"the guest did not take its identity: {answer[:80]!r}")
        return match[1]

    def keep_lease(self, seconds: int, *, on_lost: Callable[[], None] = lambda: None) -> None:
        """Renew the lease from a thread until :meth:`close`, three times per lease. ``on_lost`` is
        called once when the guest does not answer for a whole lease: by then it is powered off,
        or frozen."""

        def renew() -> None:
            while not self._stop.wait(seconds / 3):
                if self._paused.is_set():
                    continue
                try:
                    self._ask(f"lease {seconds}", "ok lease", time.monotonic() + seconds)
                except GuestError:
                    if self._stop.is_set():
                        return
                    if not self._paused.is_set():
                        on_lost()
                        return

        threading.Thread(target=renew, name="lease", daemon=True).start()

    def pause(self) -> None:
        """The guest's processors are about to stand still, and its lease with them."""
        self._paused.set()

    def resume(self) -> None:
        """They go on; from here on silence counts again."""
        self._paused.clear()

    def extend_lease(self, seconds: int) -> None:
        """Let the guest live ``seconds`` from now without being renewed."""
        self._stop.set()
        self._ask(f"lease {seconds}", "ok lease", time.monotonic() + 10)

    def power_off(self, deadline: float) -> None:
        """Ask the guest to power itself off."""
        self._stop.set()
        self._ask("poweroff", "ok poweroff", deadline)

    def close(self) -> None:
        """Stop renewing and close the connection; the guest's lease then runs out."""
        self._stop.set()
        self._sock.close()

    def _ask(self, request: str, expected: str, deadline: float) -> None:
        with self._turn(deadline):
            self._send(request + "\n", deadline)
            answer = self._answer(deadline)
        if answer != expected:
            raise GuestError(f"the guest answered {answer[:80]!r} to {request!r}")

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        """The port for one request and its answer: the renewal of the lease may be waiting for
        one that never comes."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _Silence("the guest did not answer on the control port in time")
        try:
            yield
        finally:
            self._lock.release()

    def _answer(self, deadline: float) -> str:
        """The next line that is no answer to a ping. After a second of silence a ping is sent:
        now and then a guest sleeps on bytes that its port has, and whatever comes next wakes it."""
        while True:
            try:
                line = self._line(min(deadline, time.monotonic() + 1))
            except _Silence:
                if time.monotonic() >= deadline:
                    raise
                self._pings += 1
                self._send("ping\n", deadline)
                continue
            if line != "ok ping" or not self._pings:
                return line
            self._pings -= 1

    def _send(self, text: str, deadline: float) -> None:
        try:
            self._sock.settimeout(min(max(deadline - time.monotonic(), 0.001), _SEND_TIMEOUT))
            self._sock.sendall(text.encode("ascii"))
        except OSError as error:
            raise GuestError(f"the control port broke: {error}") from error

    def _line(self, deadline: float, *, alive: Callable[[], bool] = lambda: True) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE:
                raise GuestError("the guest sent an endless line on the control port")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise _Silence("the guest did not answer on the control port in time")
            try:
                self._sock.settimeout(min(remaining, 1.0))
                data = self._sock.recv(_MAX_LINE)
            except TimeoutError:
                if not alive():
                    raise GuestError("the guest stopped") from None
                continue
            except OSError as error:
                raise GuestError(f"the control port broke: {error}") from error
            if not data:
                raise GuestError("the guest stopped")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if len(line) > _MAX_LINE or not line.isascii():
            raise GuestError("the guest sent garbage on the control port")
        return line.decode("ascii")
