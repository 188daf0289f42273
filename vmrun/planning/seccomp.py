"""The seccomp filter of a workload: an allow-list for x86_64, refused by default.

The list itself is data (``seccomp.json`` beside this module), grouped by purpose, and says of
every system call that is left out why; a test holds it against the kernel's whole table, so
that no call is undecided. Both engines are told the same rules: :func:`oci_seccomp` in the
terms of the OCI runtime specification (config-linux.md, "Seccomp"), :func:`docker_seccomp` as
docker's ``--security-opt seccomp=`` wants it.

Only the 64-bit ABI is in the filter. libseccomp kills a process that enters the kernel through
another one (``int 0x80``, x32), so numbers of those tables cannot be used around it.

Arguments are compared under a mask of the width that the kernel gives them: comparing all 64
bits of an ``int`` is how flatpak's filter was got around (CVE-2019-10063).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

_ARCHITECTURE = "SCMP_ARCH_X86_64"
_ALLOW = "SCMP_ACT_ALLOW"
_REFUSE = "SCMP_ACT_ERRNO"


@dataclass(frozen=True, slots=True)
class Condition:
    """``argument & mask == equals``; arguments count from 0."""

    argument: int
    mask: int
    equals: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """System calls that are left out: what the caller sees, and why. ``when`` narrows it to
    some arguments."""

    names: frozenset[str]
    errno: int
    why: str
    when: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """The data file, parsed. ``allow`` maps purposes to calls, ``allow_when`` a call to the
    alternatives of which one must hold, ``allow_with`` a capability to the calls that are
    useless without it."""

    allow: Mapping[str, frozenset[str]]
    allow_when: Mapping[str, tuple[tuple[Condition, ...], ...]]
    allow_with: Mapping[str, frozenset[str]]
    refuse: tuple[Refusal, ...]

    def allowed(self, capabilities: Iterable[str]) -> frozenset[str]:
        """Every call that is allowed whatever its arguments."""
        extra = (self.allow_with.get(name, frozenset()) for name in capabilities)
        return frozenset().union(*self.allow.values(), *extra)


def _conditions(raw: list[dict[str, int]]) -> tuple[Condition, ...]:
    return tuple(Condition(**item) for item in raw)


@lru_cache(maxsize=1)
def policy() -> Policy:
    """The policy that comes with this package."""
    text = resources.files(__package__).joinpath("seccomp.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    return Policy(
        allow={purpose: frozenset(names) for purpose, names in raw["allow"].items()},
        allow_when={
            name: tuple(_conditions(alternative) for alternative in rule["any"])
            for rule in raw["allow_when"]
            for name in rule["names"]
        },
        allow_with={name: frozenset(names) for name, names in raw["allow_with"].items()},
        refuse=tuple(
            Refusal(
                frozenset(rule["names"]),
                getattr(errno, rule.get("errno", "EPERM")),
                rule["why"],
                _conditions(rule.get("when", [])),
            )
            for rule in raw["refuse"]
        ),
    )


def _arguments(conditions: tuple[Condition, ...]) -> list[dict[str, Any]]:
    # libseccomp's masked comparison has the mask first: (argument & value) == valueTwo.
    return [
        {
            "index": item.argument,
            "value": item.mask,
            "valueTwo": item.equals,
            "op": "SCMP_CMP_MASKED_EQ",
        }
        for item in conditions
    ]


def _rules(capabilities: Iterable[str]) -> list[dict[str, Any]]:
    chosen = policy()
    allowed = chosen.allowed(capabilities)
    rules: list[dict[str, Any]] = [{"names": sorted(allowed), "action": _ALLOW}]
    for name, alternatives in chosen.allow_when.items():
        # One rule an alternative: the conditions of one rule must all hold.
        rules += (
            {"names": [name], "action": _ALLOW, "args": _arguments(conditions)}
            for conditions in alternatives
        )
    for refusal in chosen.refuse:
        names = sorted(refusal.names - allowed)
        if refusal.errno == errno.EPERM or not names:
            continue  # EPERM is the default, which libseccomp refuses to be told again
        rule: dict[str, Any] = {"names": names, "action": _REFUSE, "errnoRet": refusal.errno}
        if refusal.when:
            rule["args"] = _arguments(refusal.when)
        rules.append(rule)
    return rules


def oci_seccomp(capabilities: Iterable[str]) -> dict[str, Any]:
    """``linux.seccomp`` of an OCI runtime configuration for a container that holds
    ``capabilities`` (with their CAP_ prefix)."""
    return {
        "defaultAction": _REFUSE,
        "defaultErrnoRet": errno.EPERM,
        "architectures": [_ARCHITECTURE],
        "syscalls": _rules(capabilities),
    }


def docker_seccomp(capabilities: Iterable[str]) -> str:
    """The same filter as the JSON text of docker's ``--security-opt seccomp=``. The rules are
    already chosen by capability, so docker's own ``includes`` and ``excludes`` stay unused."""
    return json.dumps(oci_seccomp(capabilities), separators=(",", ":"))
