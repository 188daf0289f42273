"""Package URLs (purl-spec): how tools of different makers name the same package."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

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
    """
    namespace = ""
    if kind in (PackageKind.DEB, PackageKind.APK):
        namespace = distribution.id if distribution else kind.value
    elif kind is PackageKind.NPM and name.startswith("@"):
        namespace, _, name = name.partition("/")
    parts = [kind.value, *([_escape(namespace)] if namespace else []), _escape(name)]
    text = f"pkg:{'/'.join(parts)}@{_escape(version)}"
    pairs = [(key, value) for key, value in sorted((qualifiers or {}).items()) if value]
    query = "&".join(f"{key}={_escape(value)}" for key, value in pairs)
    return f"{text}?{query}" if query else text


def _escape(text: str) -> str:
    return quote(text, safe=_KEEP)
