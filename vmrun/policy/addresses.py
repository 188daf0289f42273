"""The address space in which no destination of a container lies.

From the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890 and what was entered
since), the multicast and reserved space (RFC 1112, RFC 5771), and the addresses at which clouds
answer whoever asks from inside. Of IPv6 only global unicast (2000::/3, RFC 4291) is left, and of
that nothing in which an IPv4 address is embedded: what a translator on the way makes of it cannot
be known here.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_V4 = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared address space"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "metadata of a cloud"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)

_GLOBAL = IPv6Network("2000::/3")
_V6 = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b::/96", "translated to IPv4"),
        ("64:ff9b:1::/48", "translated to IPv4"),
        ("100::/64", "discard-only"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignments"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An IP literal: dotted decimal without leading zeros, or RFC 4291 text without a zone.

    ``None`` for everything else, among it the octal, hexadecimal, decimal and short forms that
    inet_aton(3) takes.
    """
    if "%" in text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def denied_range(address: IPv4Address | IPv6Address) -> str | None:
    """In which denied range ``address`` lies, in words; ``None`` when it is public."""
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _V4 if address in network), None)
    reason = next((reason for network, reason in _V6 if address in network), None)
    if reason is None and address not in _GLOBAL:
        return "not global unicast"
    return reason


def denied_ranges() -> tuple[tuple[str, str], ...]:
    """Every denied range and its reason; of IPv6, all outside of 2000::/3 is denied as well."""
    return tuple((str(network), reason) for network, reason in (*_V4, *_V6))
