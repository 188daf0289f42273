"""References to images, after containers-transports(5).

=================== ==================================================
``oci:``             ``DIRECTORY[:TAG]``, an OCI image layout
``oci-archive:``     ``FILE[:TAG]``, a tar of one
``docker-archive:``  ``FILE[:NAME[:TAG]]``, as ``docker save`` writes
``docker-daemon:``   ``NAME[:TAG]`` or ``sha256:ID``, in a local daemon
=================== ==================================================

As in containers/image a path ends at its first colon, so it cannot contain one.
"""

from __future__ import annotations

import re

from vmrun.model.errors import UsageError
from vmrun.model.image import Reference, Transport

_FORMS = {
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
_DOCKER_NAME = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
)
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")

_LONGEST = 4096


def parse_reference(text: str) -> Reference:
    """Read ``TRANSPORT:…``; raises :class:`UsageError` for anything else."""
    name, colon, rest = text.partition(":")
    if not colon or name not in list(Transport):
        raise UsageError(_unsupported(text), hint=f"use one of {_ALL_FORMS}")
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


def _unsupported(text: str) -> str:
    name, colon, rest = text.partition(":")
    if (
        colon
        and rest
        and (rest.startswith("//") or name in {"docker", "containers-storage", "dir"})
    ):
        return f"transport {name[:80]!r} is not supported: {text[:200]!r}"
    return f"no transport in {text[:200]!r}; references to a registry are not supported yet"


def _bad(transport: Transport, text: str, why: str) -> UsageError:
    return UsageError(
        f"bad image reference {text[:200]!r}: {why}", hint=f"expected {_FORMS[transport]}"
    )
