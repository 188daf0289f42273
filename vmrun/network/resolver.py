"""Names to addresses, on the host, within a deadline.

getaddrinfo(3) cannot be interrupted, so it runs in threads of its own, of which there are few: one
that hangs costs its place until it ends, never the caller more than the deadline. Names are
resolved as absolute names: no search domain of this host is tried, and its hosts file, which
has no absolute names, is not used.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from vmrun.model.errors import DeadlineExceeded, VmrunError

MAX_ADDRESSES = 16
"""Of one name; what a resolver returns beyond that is not looked at."""

_ABSENT = frozenset(
    number
    for number in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None), socket.EAI_ADDRFAMILY)
    if number is not None
)


def system_lookup(name: str) -> tuple[str, ...]:
    """Addresses of an absolute name, as the host's resolver orders them; none when it says that
    there are none. Raises OSError or UnicodeError when it could not tell."""
    try:
        found = socket.getaddrinfo(
            f"{name}.", None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
    except socket.gaierror as error:
        if error.errno in _ABSENT:
            return ()
        raise
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Callable: a canonical name to its addresses; an empty tuple when it has none.

    Raises :class:`DeadlineExceeded` after ``timeout`` seconds and :class:`VmrunError` when the
    host's resolver failed. Answers are kept for ``ttl`` seconds (absence for a fifth of that),
    failures not at all. Who asks for a name that is being looked up waits for that answer.
    """

    def __init__(
        self,
        lookup: Callable[[str], tuple[str, ...]] = system_lookup,
        *,
        timeout: float = 5.0,
        ttl: float = 30.0,
        workers: int = 8,
        entries: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._timeout = timeout
        self._ttl = ttl
        self._places = threading.BoundedSemaphore(workers)
        self._entries = entries
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        self._pending: dict[str, _Pending] = {}

    def __call__(self, name: str) -> tuple[str, ...]:
        give_up = time.monotonic() + self._timeout
        with self._lock:
            cached = self._cache.get(name)
            if cached is not None and self._clock() < cached[0]:
                return cached[1]
            pending = self._pending.get(name)
            start = pending is None
            if pending is None:
                pending = self._pending[name] = _Pending()
        if start:
            self._start(name, pending)
        if not pending.done.wait(max(0.0, give_up - time.monotonic())):
            raise _late(name, self._timeout)
        if pending.failure is not None:
            raise pending.failure
        return pending.addresses

    def _start(self, name: str, pending: _Pending) -> None:
        if not self._places.acquire(timeout=self._timeout):
            self._finish(name, pending, failure=_late(name, self._timeout))
            return
        # A daemon: one that hangs in the C library does not keep vmrun from exiting.
        thread = threading.Thread(
            target=self._work, args=(name, pending), name="resolver", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._places.release()
            self._finish(name, pending, failure=VmrunError(f"no thread to resolve {name}"))

    def _work(self, name: str, pending: _Pending) -> None:
        try:
            addresses = self._lookup(name)[:MAX_ADDRESSES]
        except VmrunError as error:
            self._finish(name, pending, failure=error)
        except Exception as error:
            # Whatever it is: who waits for the name must hear of it.
            self._finish(name, pending, failure=_failed(name, error))
        else:
            self._finish(name, pending, addresses)
        finally:
            self._places.release()

    def _finish(
        self,
        name: str,
        pending: _Pending,
        addresses: tuple[str, ...] = (),
        failure: VmrunError | None = None,
    ) -> None:
        with self._lock:
            del self._pending[name]
            if failure is None:
                keep = self._ttl if addresses else self._ttl / 5
                self._cache[name] = (self._clock() + keep, addresses)
                self._cache.move_to_end(name)
                while len(self._cache) > self._entries:
                    self._cache.popitem(last=False)
        pending.addresses, pending.failure = addresses, failure
        pending.done.set()


class _Pending:
    """A look-up under way."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: tuple[str, ...] = ()
        self.failure: VmrunError | None = None


def _late(name: str, seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{name} was not resolved within {seconds:g} s",
        hint="look at this host's resolver (/etc/resolv.conf)",
    )


def _failed(name: str, error: Exception) -> VmrunError:
    return VmrunError(
        f"{name} cannot be resolved: {error}",
        hint="look at this host's resolver (/etc/resolv.conf)",
    )
