"""HTTP for one registry: TLS, deadlines, redirects that keep no credentials, honest statuses.

The only module that knows urllib3. Redirects are followed by hand, because a registry sends a
blob's reader to a store of someone else's, who must not see what the registry may.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from vmrun.image.limits import KIB, ImageLimits
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.streams import CHUNK
from vmrun.model.errors import ImageError, UsageError

CONNECT_TIMEOUT = 10.0
STALL_TIMEOUT = 30.0
"""Seconds without a byte after which a peer is given up."""
_SLOWEST = 16 * KIB
"""Bytes per second below which a stream is given up, judged after :data:`_PATIENCE`."""
_PATIENCE = 60.0
_REDIRECTS = 5
_ATTEMPTS = 4
_LONGEST_WAIT = 20.0
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``body`` is sent as it is; ``path`` may be an absolute URL that the registry
    gave (an upload's Location, the next page)."""

    method: str
    path: str
    headers: Mapping[str, str] | None = None
    body: bytes | Body | None = None
    follow: bool = True
    """Whether redirects are followed: only reads are."""


class Body(Protocol):
    """A request's body that is read as it is sent, and can be sent once more."""

    def chunks(self) -> Iterator[bytes]:
        """The bytes from their beginning."""
        ...


class Authorizer(Protocol):
    """Says what the Authorization header of a request to the registry is."""

    def header(self) -> str | None:
        """The header's value, if there is one already."""
        ...

    def answer(self, challenges: str) -> bool:
        """Take a 401's WWW-Authenticate; whether another try can do better."""
        ...


class Transient(Exception):
    """A failure that may pass; ``after`` seconds are asked for. Never leaves this module."""

    def __init__(self, error: ImageError, after: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


class Response:
    """A response whose body is read as a stream."""

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str) -> None:
        self._response = response
        self._what = what
        self._start = time.monotonic()
        self._taken = 0

    @property
    def status(self) -> int:
        """HTTP's status."""
        return self._response.status

    def header(self, name: str) -> str:
        """A header's value, empty when it is absent."""
        return str(self._response.headers.get(name, ""))[: 8 * KIB]

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end. A body that breaks off, stalls or trickles is an
        :class:`ImageError`."""
        try:
            data = self._response.read(min(size, CHUNK), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ImageError(
                f"{self._what}: the answer broke off: {_reason(error)}",
                hint="try again; if it happens again ask who runs the registry",
            ) from None
        self._taken += len(data)
        elapsed = time.monotonic() - self._start
        if data and elapsed > _PATIENCE and self._taken < _SLOWEST * elapsed:
            raise ImageError(
                f"{self._what}: {self._taken} bytes in {elapsed:.0f} s is too slow",
                hint="try again on a better connection",
            )
        return bytes(data)

    def document(self, limit: int) -> bytes:
        """A whole body that should be small."""
        parts, size = [], 0
        while data := self.read(CHUNK):
            size += len(data)
            if size > limit:
                raise ImageError(f"{self._what}: the answer has more than {limit} bytes")
            parts.append(data)
        return b"".join(parts)

    def problem(self) -> str:
        """What the body says went wrong, in a few printable characters."""
        try:
            text = self._response.read(4 * KIB, decode_content=False).decode("utf-8", "replace")
        except (urllib3.exceptions.HTTPError, OSError):
            return ""
        return "".join(c if c.isprintable() else " " for c in text)[:300].strip()

    def close(self) -> None:
        """Give the connection back, or end it when bytes are left in it."""
        if self._response.closed:
            self._response.release_conn()
        else:
            self._response.close()


class Transport:
    """Requests to one registry, ``host`` being ``HOST[:PORT]``."""

    def __init__(
        self, host: str, address: str, options: RegistryOptions, limits: ImageLimits
    ) -> None:
        if options.plain_http and not is_loopback(host):
            raise UsageError(
                f"--plain-http is for registries on this host, {host} is not one",
                hint="give the registry a certificate, and its CA with --cert-dir",
            )
        self.host = host
        self.limits = limits
        scheme = "http" if options.plain_http else "https"
        self._base = f"{scheme}://{address}"
        self._own = _pool(_context(certificates(host, options.cert_dirs)))
        self._others = _pool(_context(None))

    @contextmanager
    def send(self, request: Request, authorizer: Authorizer | None = None) -> Iterator[Response]:
        """The response to ``request``, after authentication, redirects and retries.

        Raises :class:`ImageError` when the registry cannot be reached, refuses to know us or
        keeps failing. Other statuses are the caller's to judge.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            reraise=True,
        )
        try:
            response = retrying(self._attempt, request, authorizer)
        except Transient as failure:
            raise failure.error from None
        try:
            yield response
        finally:
            response.close()

    def get_foreign(self, url: str, headers: Mapping[str, str], limit: int) -> tuple[int, bytes]:
        """A small document from another server (a token), without redirects."""
        self.check_url(url)
        with self.send(Request("GET", url, headers, follow=False)) as response:
            return response.status, response.document(limit)

    def post_foreign(self, url: str, form: bytes, limit: int) -> tuple[int, bytes]:
        """The answer to a posted form, without redirects."""
        self.check_url(url)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        with self.send(Request("POST", url, headers, form, follow=False)) as response:
            return response.status, response.document(limit)

    def check_url(self, url: str) -> None:
        """Refuse a URL that would carry secrets in the clear or is no URL at all."""
        parts = _split(url, self.host)
        if parts.scheme != "https" and not is_loopback(parts.netloc):
            raise ImageError(
                f"registry {self.host} sends us to {url[:200]!r}, which is not encrypted",
                hint="ask who runs the registry",
            )

    def _attempt(self, request: Request, authorizer: Authorizer | None) -> Response:
        response = self._follow(request, authorizer.header() if authorizer else None)
        if response.status == 401 and authorizer is not None:
            again = authorizer.answer(response.header("WWW-Authenticate"))
            if again:
                response.close()
                response = self._follow(request, authorizer.header())
        if response.status in _TRANSIENT:
            what = f"{request.method} {self._url(request.path)}"[:300]
            error = ImageError(
                f"{what}: the registry answers {response.status} {response.problem()}".strip(),
                hint="it is overloaded or broken; try again later",
            )
            after = response.header("Retry-After")
            response.close()
            raise Transient(error, float(after) if after.isdecimal() and len(after) < 6 else 0.0)
        return response

    def _follow(self, request: Request, authorization: str | None) -> Response:
        url = self._url(request.path)
        for _ in range(_REDIRECTS + 1):
            ours = self._is_ours(url)
            headers = dict(request.headers or {})
            headers.setdefault("User-Agent", "vmrun")
            headers.setdefault("Accept-Encoding", "identity")
            if authorization and ours:
                headers["Authorization"] = authorization
            response = self._once(request, url, headers, ours=ours)
            if not request.follow or response.status not in _REDIRECT:
                return response
            target = urljoin(url, response.header("Location"))
            response.close()
            if not ours or not self._is_ours(target):
                # Once away from the registry, nothing that comes gets its credentials again.
                authorization = None
            self.check_url(target)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise ImageError(
                    f"registry {self.host} leads from https to {target[:200]!r}",
                    hint="ask who runs the registry",
                )
            url = target
        raise ImageError(
            f"registry {self.host}: more than {_REDIRECTS} redirects from {request.path[:200]!r}",
            hint="ask who runs the registry",
        )

    def _once(self, request: Request, url: str, headers: dict[str, str], *, ours: bool) -> Response:
        pool = self._own if ours else self._others
        body = request.body
        what = f"{request.method} {url[:300]}"
        try:
            response = pool.request(
                request.method,
                url,
                headers=headers,
                body=body if body is None or isinstance(body, bytes) else body.chunks(),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=STALL_TIMEOUT),
            )
        except urllib3.exceptions.SSLError as error:
            raise ImageError(
                f"{what}: {_reason(error)}",
                hint=f"put the registry's CA into a folder {self.host} and name its parent"
                " with --cert-dir",
            ) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Transient(
                ImageError(
                    f"{what}: {_reason(error)}",
                    hint="check the registry's name and the network",
                )
            ) from None
        return Response(response, what)

    def _url(self, path: str) -> str:
        return path if "://" in path else self._base + path

    def _is_ours(self, url: str) -> bool:
        base, parts = urlsplit(self._base), _split(url, self.host)
        return (parts.scheme, _authority(parts)) == (base.scheme, _authority(base))


def is_loopback(host: str) -> bool:
    """Whether ``HOST[:PORT]`` is this host by its very name."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a folder of certs.d holds for a registry: CAs to trust besides the system's, and pairs
    of a client's certificate and key."""

    authorities: tuple[Path, ...]
    clients: tuple[tuple[Path, Path], ...]


def certificates(host: str, directories: tuple[Path, ...]) -> Certificates | None:
    """The first folder that has ``host`` (docker's certs.d: ``*.crt``, ``*.cert`` + ``*.key``)."""
    for directory in directories:
        folder = directory / host
        if folder.is_dir():
            pairs = [(path, path.with_suffix(".key")) for path in sorted(folder.glob("*.cert"))]
            return Certificates(tuple(sorted(folder.glob("*.crt"))), tuple(pairs))
    return None


def _context(found: Certificates | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    at: object = ""
    try:
        for at in found.authorities if found else ():
            context.load_verify_locations(cafile=at)
        for at, key in found.clients if found else ():
            context.load_cert_chain(at, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ImageError(
            f"certificate {str(at)!r}: {_reason(error)}", hint="it must be PEM, and readable"
        ) from None
    return context


def _pool(context: ssl.SSLContext) -> urllib3.PoolManager:
    return urllib3.PoolManager(num_pools=4, maxsize=_CONNECTIONS, ssl_context=context)


def _split(url: str, host: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _authority(parts)
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or "@" in parts.netloc:
        raise ImageError(
            f"registry {host} sends us to {url[:200]!r}, which is no address",
            hint="ask who runs the registry",
        )
    return parts


def _authority(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, Transient) else 0.0
    return min(max(asked, wait_random_exponential(multiplier=0.3, max=3)(state)), _LONGEST_WAIT)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    text = str(inner) if not isinstance(inner, BaseException) else f"{inner}"
    text = text.rpartition(">: ")[2] if ">: " in text else text
    return "".join(c if c.isprintable() else " " for c in text)[:200] or type(error).__name__
