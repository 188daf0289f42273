"""Credentials from docker's config.json (docker-login(1), containers-auth.json(5)).

Keys of ``auths`` are a host, or a host and a path; podman prefers the most specific one, docker
writes hosts only, some with a scheme. Credential helpers are programs named
``docker-credential-NAME`` that answer JSON on stdout (docker-credential-helpers' protocol).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.image.registry.helper import ask_program
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.errors import ImageError, ImageNotFound

_HUB_KEY = "index.docker.io"
_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's marker for an identity token
_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, or an ``identity_token`` for OAuth 2."""

    user: str
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"

    @property
    def basic(self) -> str:
        """The value of a Basic Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(
    host: str, repository: str, auth_file: Path | None, environment: Mapping[str, str]
) -> Credentials | None:
    """What the user has for ``host`` (``HOST[:PORT]``), None if nothing.

    Without ``auth_file`` it is ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``,
    which may be absent. Raises :class:`ImageError` for a file or helper that cannot be used.
    """
    path = auth_file or _default_file(environment)
    try:
        with open_regular(path, "credentials file") as file, reading(f"credentials {path}"):
            data = read_exactly(file, _LIMITS.document + 1)
    except ImageNotFound:
        if auth_file is not None:
            raise
        return None
    keys = _keys(host, repository)
    with _in_credentials(f"credentials file {str(path)!r}"):
        document = parse_object(data, "it", _LIMITS)
        helper = _helper(document, keys)
        stored = _stored(document.nested("auths"), keys)
    found = _ask_helper(helper, keys) if helper else None
    return found or stored


@contextmanager
def _in_credentials(where: str) -> Iterator[None]:
    """Errors of a file or answer that is the user's own, not an image's."""
    try:
        yield
    except ImageError as error:
        raise ImageError(
            f"{where} cannot be read: {error.message}",
            hint="correct it, or log in again: docker login HOST",
        ) from None


def _default_file(environment: Mapping[str, str]) -> Path:
    folder = environment.get("DOCKER_CONFIG")
    return Path(folder or Path(environment.get("HOME") or "/") / ".docker") / "config.json"


def _keys(host: str, repository: str) -> list[str]:
    """Names under which credentials may be filed, the most specific first."""
    parts = repository.split("/")
    names = ["/".join((host, *parts[:count])) for count in range(len(parts), -1, -1)]
    if host == "docker.io":
        names += [_HUB_KEY]
    return names


def _helper(document: Document, keys: list[str]) -> str:
    helpers = document.text_map("credHelpers")
    for key in keys:
        if key in helpers:
            return helpers[key]
    return document.text("credsStore", "")


def _ask_helper(name: str, keys: list[str]) -> Credentials | None:
    if "/" in name or not name.isprintable():
        raise ImageError(
            f"bad credential helper {name[:80]!r}", hint="correct docker's config.json"
        )
    program = f"docker-credential-{name}"
    # A helper keeps hosts, and the hub under the address that docker login gave it.
    hosts = dict.fromkeys(key for key in keys if "/" not in key)
    for host in hosts:
        server = f"https://{host}/v1/" if host == _HUB_KEY else host
        found = _run_helper(program, server)
        if found is not None:
            return found
    return None


def _run_helper(program: str, server: str) -> Credentials | None:
    status, data = ask_program(program, server)
    if status != 0:
        if b"not found" in data:
            return None
        raise ImageError(
            f"credential helper {program} failed with status {status}",
            hint="unlock the key store, or run 'docker login' again",
        )
    with _in_credentials(f"answer of {program}"):
        answer = parse_object(data, "it", _LIMITS)
        user, secret = answer.text("Username", ""), answer.text("Secret", "")
    if user == _TOKEN_USER:
        return Credentials("", identity_token=secret)
    return Credentials(user, secret) if user or secret else None


def _stored(auths: Document, keys: list[str]) -> Credentials | None:
    filed = {_plain(name): name for name in reversed(auths.names())}
    for key in keys:
        if key in filed:
            return _decode(auths.nested(filed[key]))
    return None


def _plain(name: str) -> str:
    """``https://host/v1/``, as old versions of docker wrote it, as ``host``. Without a scheme a
    path is part of the name: podman files credentials for a part of a registry so."""
    for scheme in ("https://", "http://"):
        if name.startswith(scheme):
            return name.removeprefix(scheme).partition("/")[0]
    return name.rstrip("/")


def _decode(entry: Document) -> Credentials | None:
    token = entry.text("identitytoken", "")
    encoded = entry.text("auth", "")
    user, password = entry.text("username", ""), entry.text("password", "")
    if encoded:
        try:
            text = base64.b64decode(encoded, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            raise ImageError(
                f"{entry.where}: 'auth' is not base64 text", hint="run 'docker login' again"
            ) from None
        user, _, password = text.partition(":")
        password = password.rstrip("\0")
    if not (token or user or password):
        return None
    return Credentials(user, password, token)
