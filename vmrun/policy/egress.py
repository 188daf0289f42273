"""What a container may connect to: the rules of ``--allow``, and the decision. Pure.

Nothing is allowed that no rule names. A name is judged as a name before it is resolved, and each
address that it resolves to is judged again (:func:`vmrun.policy.addresses.denied_range`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vmrun.model.errors import Refused, UsageError
from vmrun.model.network import PROXY_PORT, SOCKS_PORT, Allow
from vmrun.policy.addresses import denied_range, parse_address

DEFAULT_PORTS = (80, 443)
MAX_RULES = 256
MAX_PORTS = 64
"""Of one rule."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_NEVER = ("localhost", "local", "internal", "home.arpa", "onion", "invalid")
"""Names that mean something on this host or its own network only (RFC 6761, 6762, 7686, 8375)."""
_DEVIATIONS = frozenset("ßς\u200c\u200d")
"""Characters that IDNA 2003 and 2008 map to different names (RFC 5894, section 7.2)."""
_HINT = "write HOST, HOST:PORT, HOST:PORT,PORT, *.example.com or an IP address ([…]:PORT for IPv6)"


def canonical_host(text: str) -> str | None:
    """A host as it is compared here: a name in lower case without its final dot, or an IP literal
    in canonical form; ``None`` for everything that is neither.

    Names are ASCII (A-labels). A name whose last label is a number is none (WHATWG URL, "ends in
    a number"): what inet_aton(3) would make an address of is not mistaken for a name. Brackets
    belong to the authority, not to the host.
    """
    address = parse_address(text)
    if address is not None:
        return str(address)
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if not 0 < len(name) <= 253 or not text.isascii():
        return None
    if not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        return None
    return name


def parse_authority(text: str, default_port: int | None) -> tuple[str, int] | None:
    """``host[:port]`` of RFC 3986 as canonical host and port; ``None`` when it is malformed, has
    userinfo or a zone, or no port where ``default_port`` is ``None``."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host:
            return None
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
    canonical = canonical_host(host)
    if canonical is None:
        return None
    if not rest:
        return None if default_port is None else (canonical, default_port)
    number = _port(rest[1:]) if rest.startswith(":") else None
    return None if number is None else (canonical, number)


def parse_allow(text: str) -> Allow:
    """One ``--allow``. Without ports it is about 80 and 443.

    Raises :class:`UsageError` for what is no destination, and :class:`Refused` for one that no
    container may have: names and addresses of this host, of private networks, of clouds' metadata.
    """
    host, ports = _split(text)
    wildcard = host.startswith("*.")
    bare = _ascii(host[2:] if wildcard else host, text)
    canonical = canonical_host(bare)
    if canonical is None:
        raise _bad(text, "is neither a host name nor an IP address")
    address = parse_address(canonical)
    if address is not None:
        if wildcard:
            raise _bad(text, "puts a wildcard before an IP address")
        if reason := denied_range(address):
            raise Refused(
                f"--allow {text[:200]}: {canonical} is not a public address ({reason})",
                hint="containers reach public addresses only; --publish lets others reach them",
            )
        return Allow(canonical, ports)
    if _below(canonical, _NEVER):
        raise Refused(
            f"--allow {text[:200]}: {canonical} is not a public name",
            hint="containers reach public names only; --publish lets others reach them",
        )
    if "." not in canonical:
        what = "would allow a whole top-level domain" if wildcard else "has no domain"
        raise _bad(text, what, hint="write the full name, for example registry.example.com")
    return Allow(f"*.{canonical}" if wildcard else canonical, ports)


def parse_allows(texts: Iterable[str]) -> tuple[Allow, ...]:
    """All ``--allow`` of one container, each host once. Raises what :func:`parse_allow` raises."""
    ports: dict[str, set[int]] = {}
    for count, text in enumerate(texts, 1):
        if count > MAX_RULES:
            raise UsageError(
                f"more than {MAX_RULES} --allow", hint="allow a domain with --allow '*.example.com'"
            )
        rule = parse_allow(text)
        ports.setdefault(rule.host, set()).update(rule.ports)
    return tuple(Allow(host, tuple(sorted(numbers))) for host, numbers in ports.items())


def allows(rules: Iterable[Allow], host: str, port: int) -> bool:
    """Whether a rule allows ``port`` of ``host`` (canonical). An IP literal is allowed by a rule
    that names it, never because an allowed name resolves to it."""
    return any(port in rule.ports and _matches(rule.host, host) for rule in rules)


def knows(rules: Iterable[Allow], host: str) -> bool:
    """Whether a rule is about ``host`` (canonical), at whatever port."""
    return any(_matches(rule.host, host) for rule in rules)


def ports_of(rules: Iterable[Allow]) -> tuple[int, ...]:
    """Every port that some rule allows, in order: what the transparent path listens on."""
    return tuple(sorted({port for rule in rules for port in rule.ports}))


def proxy_environment(gateway: str, names: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """Variables that tell most programs of the proxies at ``gateway``. ``names`` are containers of
    the same network, which are reached directly."""
    http, socks = f"http://{gateway}:{PROXY_PORT}", f"socks5h://{gateway}:{SOCKS_PORT}"
    direct = ",".join(("localhost", "127.0.0.1", "::1", *names))
    values = (
        ("HTTP_PROXY", http), ("HTTPS_PROXY", http), ("ALL_PROXY", socks), ("NO_PROXY", direct)
    )  # fmt: skip
    return (*values, *((name.lower(), value) for name, value in values))


def _split(text: str) -> tuple[str, tuple[int, ...]]:
    """Host and ports of an ``--allow``."""
    if not 0 < len(text) <= 1024:
        raise _bad(text, "is empty or too long")
    if parse_address(text) is not None:
        return text, DEFAULT_PORTS
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise _bad(text, "is no bracketed IPv6 address")
        ports = rest[1:] if rest else None
    else:
        host, colon, after = text.partition(":")
        ports = after if colon else None
    if ports is None:
        return host, DEFAULT_PORTS
    words = ports.split(",")
    if len(words) > MAX_PORTS:
        raise _bad(text, f"names more than {MAX_PORTS} ports")
    numbers = [_port(word) for word in words]
    if None in numbers:
        raise _bad(text, "has a port that is not a number from 1 to 65535")
    return host, tuple(sorted({number for number in numbers if number is not None}))


def _ascii(host: str, text: str) -> str:
    """``host`` in A-labels (IDNA 2003, RFC 3490; refused where IDNA 2008 would differ)."""
    if host.isascii():
        return host
    if _DEVIATIONS & set(host):
        raise _bad(text, "is a name that IDNA 2003 and 2008 disagree on", hint="write its A-labels")
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _bad(text, "is no internationalised host name") from None


def _port(text: str) -> int | None:
    if not _PORT.fullmatch(text) or text.startswith("0"):
        return None
    number = int(text)
    return number if number <= 65535 else None


def _matches(rule: str, host: str) -> bool:
    if rule.startswith("*."):
        return host.endswith(rule[1:]) and parse_address(host) is None
    return rule == host


def _below(name: str, domains: Iterable[str]) -> bool:
    return any(name == domain or name.endswith(f".{domain}") for domain in domains)


def _bad(text: str, what: str, *, hint: str = _HINT) -> UsageError:
    return UsageError(f"--allow {text[:200]!r} {what}", hint=hint)
