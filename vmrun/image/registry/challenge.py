"""What a registry asks for: the WWW-Authenticate header (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*({_WORD})(?:\s+|$)")
_PARAMETER = re.compile(rf'\s*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))\s*(?:,|$)')
_LONGEST = 8192


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: ``scheme`` in lower case, parameters by lower-case names."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of a header, in order; what is malformed ends the list."""
    text, found = header[:_LONGEST], []
    while text.strip(" ,\t"):
        scheme = _SCHEME.match(text)
        if scheme is None:
            break
        text = text[scheme.end() :]
        parameters: dict[str, str] = {}
        while (match := _PARAMETER.match(text)) is not None:
            value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
            parameters.setdefault(match[1].lower(), value)
            text = text[match.end() :]
        found.append(Challenge(scheme[1].lower(), parameters))
    return tuple(found)
