"""Which part of a policy is about an image: scopes, from the most specific to the default
(containers-policy.json(5), "Supported transports and their scopes")."""

from __future__ import annotations

import posixpath
import re

from vmrun.model.image import Reference, Transport
from vmrun.policy.identity import full_name

_LABELS = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?P<host>(?:{_LABELS}|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?)"
    rf"(?:(?:/{_PART})+(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}|@sha(?:256|512):[0-9a-f]+)?)?"
)
_WILDCARD = re.compile(rf"\*\.{_LABELS}")
_DEFAULT_TAG = "latest"


def scopes(reference: Reference) -> tuple[str, ...]:
    """The scopes that are about ``reference``, the most specific first, the transport's own
    (``""``) last. Paths must be absolute already."""
    if reference.transport is Transport.DOCKER:
        return (*_registry(reference), "")
    if reference.transport in (Transport.OCI, Transport.OCI_ARCHIVE):
        return (*_parents(posixpath.normpath(reference.path)), "")
    if reference.transport is Transport.DOCKER_DAEMON:
        return (*_daemon(reference.path), "")
    # A docker archive has no scope but the transport's.
    return ("",)


def _registry(reference: Reference) -> tuple[str, ...]:
    name = full_name(reference.path)
    exact = []
    if reference.tag:
        exact.append(f"{name}:{reference.tag}")
    if reference.digest:
        exact.append(f"{name}@{reference.digest}")
    return (*exact, *_names(name))


def _daemon(path: str) -> tuple[str, ...]:
    """The scopes of a name in a daemon, which may be short; an image id has none."""
    if path.startswith("sha256:"):
        return ()
    name, colon, tag = path.rpartition(":")
    if not colon or "/" in tag:  # what follows the colon is a port
        name, tag = path, _DEFAULT_TAG
    host, slash, rest = full_name(name).partition("/")
    name = f"{host.lower()}{slash}{rest}"
    return (f"{name}:{tag}", *_names(name))


def _names(name: str) -> tuple[str, ...]:
    """The repository, the namespaces above it, the host, and ``*.b.c`` and ``*.c`` for the host
    ``a.b.c``, whatever its port."""
    parts = name.split("/")
    labels = parts[0].partition(":")[0].split(".")
    return (
        *("/".join(parts[:count]) for count in range(len(parts), 0, -1)),
        *("*." + ".".join(labels[at:]) for at in range(1, len(labels))),
    )


def _parents(path: str) -> tuple[str, ...]:
    found = []
    while path.strip("/"):
        found.append(path)
        path = posixpath.dirname(path)
    return tuple(found)


def covers(scope: str, name: str) -> bool:
    """Whether ``scope`` (as for registries; empty for all) holds the image that is called
    ``name``: ``HOST/REPOSITORY``, with a tag or digest."""
    if scope.startswith("*."):
        host = name.partition("/")[0].partition(":")[0]
        return host.endswith(scope[1:])
    # Below a host alone a colon would begin a port: another registry.
    marks = "/:@" if "/" in scope else "/"
    return not scope or name == scope or name.startswith(tuple(scope + mark for mark in marks))


def bad_scope(transport: str, scope: str) -> str | None:
    """Why ``scope`` can never match an image of ``transport``; None if it can.

    A scope that is never found leaves its images to a more general one, which may be laxer.
    """
    if scope == "":
        return None
    if transport in (Transport.OCI, Transport.OCI_ARCHIVE):
        clean = "/" + posixpath.normpath(scope).lstrip("/")
        if scope == "/" or clean != scope:
            return "must be an absolute path without '.', '..' or a slash at its end"
        return None
    if transport == Transport.DOCKER_ARCHIVE:
        return 'docker-archive knows the scope "" only'
    return _bad_name(scope)


def _bad_name(scope: str) -> str | None:
    if _WILDCARD.fullmatch(scope):
        return None
    match = _NAME.fullmatch(scope)
    if match is None:
        return "must be HOST[:PORT], HOST/PATH, HOST/PATH:TAG or *.DOMAIN, the host in lower case"
    host = match["host"]
    if host != "localhost" and not any(mark in host for mark in ".:"):
        return "names no registry: write the full name, with the host"
    if host == "index.docker.io":
        return "never matches: that registry's name is docker.io"
    return None
