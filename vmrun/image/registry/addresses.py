"""URLs that a registry gives us: which are its own, and which may be followed at all."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urljoin, urlsplit

from vmrun.model.errors import ImageError

_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether ``HOST[:PORT]`` is this host by its very name."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def split_url(url: str, host: str) -> SplitResult:
    """An absolute http or https URL that registry ``host`` gave; :class:`ImageError` if it is
    none, or holds a user name."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or "@" in parts.netloc:
        raise ImageError(
            f"registry {host} sends us to {without_query(url)!r}, which is no address",
            hint="ask who runs the registry",
        )
    return parts


def origin(url: str, host: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454): who is on the other side."""
    parts = split_url(url, host)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def onward(base: str, target: str, host: str) -> str:
    """``target``, perhaps relative, as the registry gave it in an answer from ``base``.

    Never from https to http. Plain http leads only from this host to this host.
    """
    try:
        url = urljoin(base, target)
    except ValueError:
        url = target
    parts = split_url(url, host)
    if parts.scheme == "https":
        return url
    if urlsplit(base).scheme == "https" or not is_loopback(parts.netloc):
        raise ImageError(
            f"registry {host} sends us to {without_query(url)!r}, which is not encrypted",
            hint="ask who runs the registry",
        )
    return url


def without_query(url: str) -> str:
    """For messages: a query may hold the signature that opens a store."""
    text = url.partition("?")[0][:200]
    return "".join(c if c.isprintable() else " " for c in text)
