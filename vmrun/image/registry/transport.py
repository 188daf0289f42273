"""HTTP for one registry: retries, redirects that keep no credentials, honest statuses.

Redirects are followed by hand, because a registry sends a blob's reader to a store of someone
else's, who must neither see what the registry may nor ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Protocol

import urllib3
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from vmrun.image.limits import ImageLimits
from vmrun.image.registry.addresses import is_loopback, onward, origin, without_query
from vmrun.image.registry.connections import PoolManager, make_pool
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.response import Passing, Response, reason
from vmrun.image.registry.tls import certificates, make_context
from vmrun.model.errors import ImageError, UsageError

_REDIRECTS = 5
_ATTEMPTS = 4
_LONGEST_WAIT = 20.0
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_REDIRECT = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``path`` may be an absolute URL that the registry gave (an upload's Location),
    checked with :meth:`Transport.onward`."""

    method: str
    path: str
    headers: Mapping[str, str] | None = None
    body: bytes | Body | None = None
    follow: bool = True
    """Whether redirects are followed: only reads are."""
    once: bool = False
    """Do not repeat it: a broken upload has to be begun anew."""
    bare: bool = False
    """Whether a redirect's target gets no Authorization even on the registry's own host: a
    store's URL is signed, and takes a second proof for an attack."""


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

    def answer(self, challenges: str, sent: str | None) -> bool:
        """Take a 401's WWW-Authenticate, the answer to a request with the Authorization
        ``sent``; whether another try can do better."""
        ...


class Transport:
    """Requests to one registry, ``host`` being ``HOST[:PORT]``; threads may share it."""

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
        self._origin = origin(self._base, host)
        self._cert_dirs = options.cert_dirs

    # Contexts are made when they are needed: loading the system's CAs takes its time.

    @cached_property
    def _own(self) -> PoolManager:
        if self._origin[0] == "http":
            return make_pool(None)
        return make_pool(make_context(certificates(self.host, self._cert_dirs), known=True))

    @cached_property
    def _others(self) -> PoolManager:
        """Token servers and stores are often of the same house, and so under the same CA."""
        return make_pool(make_context(certificates(self.host, self._cert_dirs), known=False))

    @contextmanager
    def send(self, request: Request, authorizer: Authorizer | None = None) -> Iterator[Response]:
        """The response to ``request``, after authentication, redirects and retries.

        Raises :class:`ImageError` when the registry cannot be reached or keeps failing, which is
        :class:`Passing` for a request that is sent once. Other statuses are the caller's to judge.
        """
        if request.once:
            response = self._attempt(request, authorizer)
        else:
            response = self._retry(request, authorizer)
        try:
            yield response
        finally:
            response.close()

    def get_foreign(self, url: str, headers: Mapping[str, str], limit: int) -> tuple[int, bytes]:
        """A small document from another server (a token), without redirects."""
        url = self.onward(url)
        with self.send(Request("GET", url, headers, follow=False)) as response:
            return response.status, response.document(limit)

    def post_foreign(self, url: str, form: bytes, limit: int) -> tuple[int, bytes]:
        """The answer to a posted form, without redirects."""
        url = self.onward(url)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        with self.send(Request("POST", url, headers, form, follow=False)) as response:
            return response.status, response.document(limit)

    def onward(self, target: str, base: str = "") -> str:
        """Where the registry sends us, relative to ``base``; refuses what is not encrypted."""
        return onward(base or self._base, target, self.host)

    def is_own(self, url: str) -> bool:
        """Whether a URL is the registry's: same scheme, host and port."""
        return origin(url, self.host) == self._origin

    def _retry(self, request: Request, authorizer: Authorizer | None) -> Response:
        retrying = Retrying(
            retry=retry_if_exception_type(Passing),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            reraise=True,
        )
        try:
            return retrying(self._attempt, request, authorizer)
        except Passing as failure:
            raise ImageError(failure.message, hint=failure.hint) from None

    def _attempt(self, request: Request, authorizer: Authorizer | None) -> Response:
        sent = authorizer.header() if authorizer else None
        response = self._follow(request, sent)
        # Only the registry may ask who we are. Whoever it redirects to would name a token server
        # of his own, and get the registry's password there.
        if response.status == 401 and authorizer is not None and response.direct:
            with _closed_on_error(response):
                again = authorizer.answer(response.header("WWW-Authenticate"), sent)
            if again:
                response.close()
                response = self._follow(request, authorizer.header())
        if response.status in _TRANSIENT:
            with _closed_on_error(response):
                error = _overloaded(request, response)
            response.close()
            raise error
        return response

    def _follow(self, request: Request, authorization: str | None) -> Response:
        url = request.path if "://" in request.path else self._base + request.path
        direct = own = self.is_own(url)
        for _ in range(_REDIRECTS + 1):
            headers = {"User-Agent": "vmrun", "Accept-Encoding": "identity"}
            headers.update(request.headers or {})
            if authorization and direct:
                headers["Authorization"] = authorization
            response = self._once(request, url, headers, own=own, direct=direct)
            if not request.follow or response.status not in _REDIRECT:
                return response
            with _closed_on_error(response):
                url = self.onward(response.header("Location"), url)
                own = self.is_own(url)
            response.close()
            # Once away from the registry, nothing that comes gets its credentials again.
            direct = direct and own and not request.bare
        raise ImageError(
            f"registry {self.host}: more than {_REDIRECTS} redirects from"
            f" {without_query(request.path)!r}",
            hint="ask who runs the registry",
        )

    def _once(
        self, request: Request, url: str, headers: dict[str, str], *, own: bool, direct: bool
    ) -> Response:
        pool = self._own if own else self._others
        body = request.body
        what = f"{request.method} {without_query(url)}"
        try:
            response = pool.request(
                request.method,
                url,
                headers=headers,
                body=body if body is None or isinstance(body, bytes) else body.chunks(),
                redirect=False,
                retries=False,
                preload_content=False,
            )
        except urllib3.exceptions.SSLError as error:
            raise ImageError(
                f"{what}: {reason(error)}",
                hint=f"put the registry's CA into a folder {self.host} and name its parent"
                " with --cert-dir",
            ) from None
        except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            raise Passing(
                f"{what}: {reason(error)}", hint="check the registry's name and the network"
            ) from None
        return Response(response, url, what, direct=direct)


@contextmanager
def _closed_on_error(response: Response) -> Iterator[None]:
    try:
        yield
    except BaseException:
        response.close()
        raise


def _overloaded(request: Request, response: Response) -> Passing:
    after = response.header("Retry-After")
    return Passing(
        f"{request.method} {without_query(response.url)}: the registry answers"
        f" {response.status} {response.problem()}".rstrip(),
        hint="it is overloaded or broken; try again later",
        after=float(after) if after.isascii() and after.isdecimal() and len(after) < 6 else 0.0,
    )


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, Passing) else 0.0
    return min(max(asked, wait_random_exponential(multiplier=0.3, max=3)(state)), _LONGEST_WAIT)
