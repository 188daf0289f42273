"""References to images, after containers-transports(5).

=================== ==================================================
(no prefix)         ``HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]``, in a registry;
                    ``docker://`` may stand before it
``oci:``             ``DIRECTORY[:TAG]``, an OCI image layout
``oci-archive:``     ``FILE[:TAG]``, a tar of one
``docker-archive:``  ``FILE[:NAME[:TAG]]``, as ``docker save`` writes
``docker-daemon:``   ``NAME[:TAG]`` or ``sha256:ID``, in a local daemon
=================== ==================================================

As in containers/image a path ends at its first colon, so it cannot contain one. A registry's
host is always named: a short name such as ``busybox`` means different images to different
tools, so it is refused.
"""

from __future__ import annotations

import re

from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, UsageError
from vmrun.model.image import Reference, Transport

_FORMS = {
    Transport.DOCKER: "HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]",
    Transport.OCI: "oci:DIRECTORY[:TAG]",
    Transport.OCI_ARCHIVE: "oci-archive:FILE[:TAG]",
    Transport.DOCKER_ARCHIVE: "docker-archive:FILE[:NAME[:TAG]]",
    Transport.DOCKER_DAEMON: "docker-daemon:NAME[:TAG] or docker-daemon:sha256:ID",
}
_ALL_FORMS = ", ".join(_FORMS.values())

# The grammar of org.opencontainers.image.ref.name (OCI image-spec, annotations.md).
_COMPONENT = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_REF_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")

# The grammar of distribution/reference, without its digest part.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DOCKER_NAME = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::{_TAG})?")
# Also an IPv6 address in brackets; the repository is limited to 255 characters with its host.
_REGISTRY = re.compile(
    rf"(?P<host>{_HOST}|\[[0-9a-fA-F:.]+\](?::[0-9]+)?)/(?P<repository>{_PART}(?:/{_PART})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>[^@]+))?"
)
_LONGEST_NAME = 255
_HUB = "docker.io"
DEFAULT_TAG = "latest"
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")

_LONGEST = 4096


def parse_reference(text: str) -> Reference:
    """Read a reference; raises :class:`UsageError` for anything else.

    A registry reference without tag and digest means the tag ``latest``. On Docker's own
    registry a name of one part means ``library/NAME``, as docker has it.
    """
    name, colon, rest = text.partition(":")
    if colon and name == Transport.DOCKER and rest.startswith("//"):
        return _registry_reference(rest.removeprefix("//"), text)
    if not colon or name not in set(Transport) - {Transport.DOCKER}:
        return _registry_reference(text, text)
    transport = Transport(name)
    if len(text) > _LONGEST or not text.isprintable():
        raise _bad(transport, text, "it is too long or holds control characters")
    if transport is Transport.DOCKER_DAEMON:
        return Reference(transport, _daemon_reference(rest, text))
    path, colon, tag = rest.partition(":")
    if not path:
        raise _bad(transport, text, "the path is empty")
    if not colon:
        return Reference(transport, path)
    form = _DOCKER_NAME if transport is Transport.DOCKER_ARCHIVE else _REF_NAME
    if not form.fullmatch(tag):
        raise _bad(transport, text, f"{tag[:80]!r} cannot name an image")
    return Reference(transport, path, tag)


def _daemon_reference(rest: str, text: str) -> str:
    if rest.startswith("sha256:"):
        if not _IMAGE_ID.fullmatch(rest):
            raise _bad(Transport.DOCKER_DAEMON, text, "an image id has 64 lower-case hex digits")
    elif not _DOCKER_NAME.fullmatch(rest):
        raise _bad(Transport.DOCKER_DAEMON, text, f"{rest[:80]!r} cannot name an image")
    return rest


def _registry_reference(rest: str, text: str) -> Reference:
    if len(text) > _LONGEST or not text.isprintable():
        raise _bad(Transport.DOCKER, text, "it is too long or holds control characters")
    match = _REGISTRY.fullmatch(rest)
    if match is None or not _is_host(match["host"]):
        raise UsageError(_why_not(rest, text), hint=f"use one of {_ALL_FORMS}")
    host, repository, tag = match["host"].lower(), match["repository"], match["tag"]
    if host == _HUB and "/" not in repository:
        repository = f"library/{repository}"
    path = f"{host}/{repository}"
    if len(path) > _LONGEST_NAME:
        raise _bad(Transport.DOCKER, text, f"its name has more than {_LONGEST_NAME} characters")
    digest = _pinned(match["digest"], text)
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    return Reference(Transport.DOCKER, path, tag, digest)


def _is_host(name: str) -> bool:
    """docker's rule for telling a registry from the first part of a short name."""
    return name == "localhost" or any(mark in name for mark in ".:")


def _pinned(digest: str | None, text: str) -> Digest | None:
    if digest is None:
        return None
    try:
        return Digest.parse(digest)
    except ImageError as error:
        raise _bad(Transport.DOCKER, text, error.message) from None


def _why_not(rest: str, text: str) -> str:
    name, colon, inner = rest.partition(":")
    if colon and (inner.startswith("//") or name in {"containers-storage", "dir"}):
        return f"transport {name[:80]!r} is not supported: {text[:200]!r}"
    if _DOCKER_NAME.fullmatch(rest.partition("@")[0]):
        return f"{text[:200]!r} names no registry: a short name can mean several images"
    return f"not an image reference: {text[:200]!r}"


def _bad(transport: Transport, text: str, why: str) -> UsageError:
    return UsageError(
        f"bad image reference {text[:200]!r}: {why}", hint=f"expected {_FORMS[transport]}"
    )
