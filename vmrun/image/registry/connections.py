"""urllib3's connections, with the deadlines that it lacks.

A timeout of a socket starts anew with every byte. A peer that sends its headers one byte a minute
would hold us for ever, so the socket is shut when they have not all come in time.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer

import urllib3
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["PoolManager", "make_pool"]

CONNECT_TIMEOUT = 10.0
STALL_TIMEOUT = 30.0
"""Seconds without a byte after which a peer is given up."""
HEADERS_TIMEOUT = 60.0
"""Seconds in which all headers of an answer must have come."""
_CONNECTIONS = 8


@contextmanager
def _deadline(connection: socket.socket | None) -> Iterator[None]:
    def shut() -> None:
        if connection is not None:
            with suppress(OSError):
                # Not SSLSocket's own, which would let the reader go on without TLS.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = Timer(HEADERS_TIMEOUT, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(STALL_TIMEOUT)  # for what is sent, too

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        with _deadline(self.sock):
            return super().getresponse()


class _Encrypted(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(STALL_TIMEOUT)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        with _deadline(self.sock):
            return super().getresponse()


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _EncryptedPool(HTTPSConnectionPool):
    ConnectionCls = _Encrypted


def make_pool(context: ssl.SSLContext | None) -> PoolManager:
    """Connections to any host; threads may share them. Without a context only for plain HTTP."""
    pool = PoolManager(
        num_pools=4,
        maxsize=_CONNECTIONS,
        ssl_context=context,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=STALL_TIMEOUT),
    )
    pool.pool_classes_by_scheme = {"http": _PlainPool, "https": _EncryptedPool}
    return pool
