"""Credentials from docker's config.json (docker-login(1), containers-auth.json(5)).

Keys of ``auths`` are a host, or a host and a path; podman prefers the most specific one, docker
writes hosts only, some with a scheme. Credential helpers are programs named
``docker-credential-NAME`` that answer JSON on stdout (docker-credential-helpers' protocol).
"""

from __future__ import annotations

import base64
import binascii
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.errors import ImageError, ImageNotFound

_HUB_KEY = "index.docker.io"
_HELPER_TIMEOUT = 30.0
_HELPER_ANSWER = 64 * 1024
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
    document = parse_object(data, f"credentials file {str(path)!r}", _LIMITS)
    keys = _keys(host, repository)
    helper = _helper(document, keys)
    if helper:
        found = _ask_helper(helper, keys)
        if found is not None:
            return found
    return _stored(document.nested("auths"), keys)


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
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise ImageError(
            f"credential helper {program} is not installed",
            hint="install it, or remove it from docker's config.json",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(
            f"credential helper {program}: {error}", hint="run 'docker login' again"
        ) from None
    if done.returncode != 0:
        if b"not found" in done.stdout + done.stderr:
            return None
        raise ImageError(
            f"credential helper {program} failed with status {done.returncode}",
            hint="unlock the key store, or run 'docker login' again",
        )
    answer = parse_object(done.stdout[:_HELPER_ANSWER], f"answer of {program}", _LIMITS)
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
    """``https://host/v1/`` as ``host``."""
    name = name.removeprefix("https://").removeprefix("http://").rstrip("/")
    for suffix in ("/v1", "/v2"):
        name = name.removesuffix(suffix)
    return name


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
