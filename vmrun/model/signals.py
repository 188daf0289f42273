"""Signals by name (signal(7)), with Linux's numbers. Pure."""

from __future__ import annotations

from vmrun.model.errors import UsageError

# In the order of their numbers, from 1.
_NAMES = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
    "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
)  # fmt: skip
_NUMBERS = {name: number for number, name in enumerate(_NAMES, start=1)}
_RTMIN, _RTMAX = 34, 64

KILL = 9
TERM = 15


def signal_number(name: str) -> int:
    """``TERM``, ``SIGTERM``, ``15`` or ``RTMIN+1``. Raises :class:`UsageError`."""
    text = name.strip().upper().removeprefix("SIG")
    if text in _NUMBERS:
        return _NUMBERS[text]
    base, plus, offset = text.partition("+")
    digits = offset if plus else text
    if digits.isascii() and digits.isdigit() and len(digits) <= 2:
        number = int(digits) + (_RTMIN if plus else 0)
        if (not plus or base == "RTMIN") and 1 <= number <= _RTMAX:
            return number
    if text == "RTMIN":
        return _RTMIN
    raise UsageError(f"no signal {name[:40]!r}", hint="e.g. TERM, HUP, USR1 or a number")
