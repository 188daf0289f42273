"""Proving to a registry who we are: Basic (RFC 7617) and bearer tokens (the distribution
project's token specification, token/jwt and token/oauth).

Credentials go to the registry that they are for, and to the token server that this registry
names over an authenticated connection: that is how the protocol works, so a registry is
trusted with the credentials that were filed under its name. They never travel unencrypted,
except from this host to itself.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit, urlunsplit

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import KIB, ImageLimits
from vmrun.image.registry.addresses import without_query
from vmrun.image.registry.challenge import Challenge, parse_challenges
from vmrun.image.registry.credentials import Credentials
from vmrun.image.registry.transport import Transport
from vmrun.model.errors import ImageError

_ANSWER = 64 * KIB
_CLIENT = "vmrun"
_SHORTEST = 60.0
"""Seconds that a token lives when the server does not say (the token specification)."""
_LONGEST = 24 * 3600.0
_MARGIN = 10.0
_LIMITS = ImageLimits()
_SCOPES = 8
Fields = list[tuple[str, str]]


@dataclass(slots=True)
class _Token:
    value: str
    expires: float


class RegistryAuth:
    """The Authorization header for requests to one repository; threads may share it.

    ``scope`` is the access that is asked for, e.g. ``repository:team/app:pull,push``.
    """

    def __init__(self, transport: Transport, credentials: Credentials | None, scope: str) -> None:
        self._transport = transport
        self._credentials = credentials
        self._scope = scope
        self._lock = threading.Lock()
        self._basic = False
        self._token: _Token | None = None
        self._rounds = 0

    @property
    def account(self) -> str:
        """The user name that the registry knows us by; empty for nobody."""
        return self._credentials.user if self._credentials and self._rounds else ""

    def header(self) -> str | None:
        """What to send now; None before the registry has asked."""
        with self._lock:
            return self._header()

    def _header(self) -> str | None:
        if self._basic and self._credentials:
            return self._credentials.basic
        if self._token and self._token.expires > time.monotonic():
            return f"Bearer {self._token.value}"
        return None

    def answer(self, challenges: str, sent: str | None) -> bool:
        """Take up the first challenge that we can answer. Another thread may have done so since
        ``sent`` was."""
        with self._lock:
            if self._header() not in (None, sent):
                return True
            self._rounds += 1
            for challenge in parse_challenges(challenges):
                if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                    self._token = self._ask(challenge)
                    return True
                if challenge.scheme == "basic" and self._can_be_basic() and not self._basic:
                    self._basic = True
                    return True
            return False

    def _can_be_basic(self) -> bool:
        return self._credentials is not None and not self._credentials.identity_token

    def _ask(self, challenge: Challenge) -> _Token:
        realm = challenge.parameters["realm"]
        where = f"answer of token server {without_query(realm)!r}"
        service = challenge.parameters.get("service", "")
        fields = [("service", service)] if service else []
        scopes = dict.fromkeys((self._scope, *challenge.parameters.get("scope", "").split()))
        fields += [("scope", scope) for scope in list(scopes)[:_SCOPES]]
        if self._credentials and self._credentials.identity_token:
            status, data = self._refresh(realm, fields, self._credentials.identity_token)
        else:
            status, data = self._get(realm, fields)
        if status != 200:
            raise ImageError(
                f"{where}: it gives no token (status {status})",
                hint=f"log in again: docker login {self._transport.host}",
            )
        return _token(parse_object(data, where, _LIMITS))

    def _get(self, realm: str, fields: Fields) -> tuple[int, bytes]:
        parts = urlsplit(self._transport.onward(realm))
        query = "&".join(filter(None, (parts.query, urlencode(fields))))
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
        headers = {"Authorization": self._credentials.basic} if self._credentials else {}
        return self._transport.get_foreign(url, headers, _ANSWER)

    def _refresh(self, realm: str, fields: Fields, token: str) -> tuple[int, bytes]:
        """OAuth 2 has one scope field, of several scopes with spaces (RFC 6749, section 3.3)."""
        form = {
            "grant_type": "refresh_token",
            "client_id": _CLIENT,
            "refresh_token": token,
            **dict(fields),
            "scope": " ".join(value for name, value in fields if name == "scope"),
        }
        return self._transport.post_foreign(realm, urlencode(form).encode(), _ANSWER)


def _token(answer: Document) -> _Token:
    value = answer.text("token", "") or answer.text("access_token", "")
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ImageError(f"{answer.where}: it holds no token", hint="ask who runs the registry")
    lifetime = answer.integer("expires_in") if "expires_in" in answer else _SHORTEST
    lifetime = min(max(lifetime, _SHORTEST), _LONGEST)
    return _Token(value, time.monotonic() + lifetime - _MARGIN)
