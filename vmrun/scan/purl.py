"""Package URLs (purl-spec): how tools of different makers name the same package."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from vmrun.model.digest import Digest
from vmrun.model.image import Reference, Transport
from vmrun.model.scan import Distribution, PackageKind

_KEEP = ":"


def purl(
    kind: PackageKind,
    name: str,
    version: str,
    *,
    distribution: Distribution | None = None,
    qualifiers: Mapping[str, str] | None = None,
) -> str:
    """``pkg:deb/debian/openssl@3.0.11-1?arch=amd64&distro=debian-12``.

    ``qualifiers`` without a value are left out; names are escaped as the specification has it.
    The namespace of a distribution's package is left out, too, when nobody knows which one it is.
    """
    namespace = ""
    if kind in (PackageKind.DEB, PackageKind.APK):
        namespace = distribution.id if distribution else ""
    elif kind is PackageKind.NPM and name.startswith("@"):
        namespace, _, name = name.partition("/")
    parts = [kind.value, *([_escape(namespace)] if namespace else []), _escape(name)]
    text = f"pkg:{'/'.join(parts)}@{_escape(version)}"
    return _with_qualifiers(text, qualifiers or {})


def oci_purl(reference: Reference, digest: Digest) -> str:
    """``pkg:oci/NAME@sha256:…?repository_url=…&tag=…`` of an image in a registry; empty for
    those of other transports, which nobody else can reach by a URL."""
    if reference.transport is not Transport.DOCKER:
        return ""
    name = reference.path.rpartition("/")[2]
    text = f"pkg:oci/{_escape(name)}@{_escape(str(digest))}"
    return _with_qualifiers(text, {"repository_url": reference.path, "tag": reference.tag or ""})


def _with_qualifiers(text: str, qualifiers: Mapping[str, str]) -> str:
    pairs = [(key, value) for key, value in sorted(qualifiers.items()) if value]
    query = "&".join(f"{key}={quote(value, safe=_KEEP + '/')}" for key, value in pairs)
    return f"{text}?{query}" if query else text


def _escape(text: str) -> str:
    return quote(text, safe=_KEEP)
