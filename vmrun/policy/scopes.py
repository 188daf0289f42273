"""Which part of a policy is about an image: scopes, from the most specific to the default
(containers-policy.json(5), "Supported transports and their scopes")."""

from __future__ import annotations

import posixpath

from vmrun.model.image import Reference, Transport


def scopes(reference: Reference) -> tuple[str, ...]:
    """The scopes that are about ``reference``, the most specific first, the transport's own
    (``""``) last. Paths must be absolute already."""
    if reference.transport is Transport.DOCKER:
        return (*_registry(reference), "")
    if reference.transport in (Transport.OCI, Transport.OCI_ARCHIVE):
        return (*_parents(posixpath.normpath(reference.path)), "")
    # A docker archive has no scope but the transport's; of a daemon's image ids have none.
    if reference.transport is Transport.DOCKER_DAEMON and ":" in reference.path[:7]:
        return ("",)
    if reference.transport is Transport.DOCKER_DAEMON:
        name, _, tag = reference.path.rpartition(":")
        named = (reference.path, name) if name and "/" not in tag else (reference.path,)
        return (*named, *_namespaces(named[-1]), "")
    return ("",)


def _registry(reference: Reference) -> tuple[str, ...]:
    exact = []
    if reference.tag:
        exact.append(f"{reference.path}:{reference.tag}")
    if reference.digest:
        exact.append(f"{reference.path}@{reference.digest}")
    return (*exact, reference.path, *_namespaces(reference.path), *_wildcards(reference.host))


def _namespaces(name: str) -> tuple[str, ...]:
    parts = name.split("/")
    return tuple("/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))


def _wildcards(host: str) -> tuple[str, ...]:
    """``*.b.c`` and ``*.c`` for ``a.b.c``; a port stays."""
    labels = host.split(".")
    return tuple("*." + ".".join(labels[at:]) for at in range(1, len(labels)))


def _parents(path: str) -> tuple[str, ...]:
    found = []
    while path not in ("/", ""):
        found.append(path)
        path = posixpath.dirname(path)
    return tuple(found)


def bad_scope(transport: str, scope: str) -> str | None:
    """Why ``scope`` can never match an image of ``transport``; None if it can."""
    if scope == "":
        return None
    if transport in (Transport.OCI, Transport.OCI_ARCHIVE):
        if not scope.startswith("/") or scope == "/" or posixpath.normpath(scope) != scope:
            return "must be an absolute path without '.', '..' or a slash at its end"
        return None
    if transport == Transport.DOCKER_ARCHIVE:
        return 'docker-archive knows the scope "" only'
    if "*" in scope.removeprefix("*.") or scope.startswith(("/", ".")) or scope.endswith("/"):
        return "must be HOST, HOST/PATH, HOST/PATH:TAG or *.DOMAIN"
    return None
