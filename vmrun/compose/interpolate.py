"""Variables in values (Compose specification, 12-interpolation.md).

=================== ===================================================================
``$NAME``           the variable, which must be set
``${NAME}``         the same
``${NAME:-WORD}``   the variable, WORD if it is unset or empty; ``-``: if it is unset
``${NAME:?WORD}``   the variable, an error if it is unset or empty; ``?``: if it is unset
``${NAME:+WORD}``   WORD if it is set and not empty, else nothing; ``+``: if it is set
``$$``              a dollar sign
=================== ===================================================================

WORD may hold variables again, and only the one that is used is looked up. Compose takes a
variable that is not set for an empty text, with a warning; here it is an error. So is what readers
of the format disagree about: a ``$`` before anything else, and a brace within WORD.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from vmrun.model.errors import UsageError

MAX_TEXT = 128 << 10
"""Characters of one value; the kernel takes no longer argument or variable (MAX_ARG_STRLEN)."""

MAX_TOTAL = 8 << 20
"""Characters of all values of a project together."""

_MAX_NESTING = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
_TEXT = re.compile(r"[^$]+")
_WORD = re.compile(r"[^${}]+")


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    operator: str = ""
    word: _Parts = ()


_Parts: TypeAlias = tuple[str | _Variable, ...]


def lookup(values: Mapping[str, str], name: str) -> str | None:
    """The value of a variable, None if it is not set. Raises :class:`UsageError` for one that
    holds other bytes than UTF-8."""
    value = values.get(name)
    if value is not None and not is_text(value):
        raise UsageError(f"the variable {name[:80]} is not UTF-8", hint="set it to a text")
    return value


def is_text(value: str) -> bool:
    """Whether it is Unicode: what was read from the environment can hold bytes that are none."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Variables:
    """What variables are set to, and how much text they may still become."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._left = MAX_TOTAL

    def get(self, name: str) -> str | None:
        """See :func:`lookup`."""
        return lookup(self._values, name)

    def expand(self, text: str) -> str:
        """``text`` with its variables replaced. Raises :class:`UsageError`, which never holds a
        variable's value."""
        if "$" not in text:
            return text
        parts, _ = _parse(text, 0, 0)
        expanded = "".join(self._evaluate(parts))
        self._left -= len(expanded)
        if len(expanded) > MAX_TEXT or self._left < 0:
            raise UsageError(
                "too long with its variables replaced",
                hint=f"at most {MAX_TEXT >> 10} KiB a value, {MAX_TOTAL >> 20} MiB together",
            )
        return expanded

    def _evaluate(self, parts: _Parts) -> list[str]:
        return [part if isinstance(part, str) else self._value(part) for part in parts]

    def _value(self, variable: _Variable) -> str:
        value = self.get(variable.name)
        kind = variable.operator[-1:]
        present = bool(value) if variable.operator.startswith(":") else value is not None
        if kind == "+":
            return "".join(self._evaluate(variable.word)) if present else ""
        if present and value is not None:
            return value
        if kind == "-":
            return "".join(self._evaluate(variable.word))
        if kind == "?":
            message = "".join(self._evaluate(variable.word))[:200]
            raise UsageError(
                f"the variable {variable.name[:80]} is required" + (f": {message}" * bool(message)),
                hint=f"set {variable.name[:80]} in the environment or in .env",
            )
        raise UsageError(
            f"the variable {variable.name[:80]} is not set",
            hint=f"set it in the environment or in .env, or write ${{{variable.name[:80]}:-}} "
            "for an empty text, $$ for a dollar sign",
        )


def _parse(text: str, at: int, nesting: int) -> tuple[_Parts, int]:
    """Texts and variables from ``at`` on: to the end or, within braces, to the closing one."""
    if nesting > _MAX_NESTING:
        raise UsageError(f"variables nested more than {_MAX_NESTING} deep", hint="make it flatter")
    parts: list[str | _Variable] = []
    plain = _WORD if nesting else _TEXT
    while at < len(text):
        if match := plain.match(text, at):
            parts.append(match[0])
            at = match.end()
        elif text[at] == "}":
            return tuple(parts), at
        elif text[at] == "{":
            raise _bad(text, at, "a brace within the default of a variable")
        elif text.startswith("$$", at):
            parts.append("$")
            at += 2
        elif match := _NAME.match(text, at + 1):
            parts.append(_Variable(match[0]))
            at = match.end()
        else:
            part, at = _braced(text, at, nesting)
            parts.append(part)
    if nesting:
        raise _bad(text, at, "'${' without its '}'")
    return tuple(parts), at


def _braced(text: str, at: int, nesting: int) -> tuple[_Variable, int]:
    name = _NAME.match(text, at + 2) if text.startswith("${", at) else None
    if name is None:
        raise _bad(text, at, "'$' without the name of a variable")
    end = name.end()
    if text.startswith("}", end):
        return _Variable(name[0]), end + 1
    operator = _OPERATOR.match(text, end)
    if operator is None:
        raise _bad(text, at, f"'${{{name[0][:80]}' without its '}}'")
    word, end = _parse(text, operator.end(), nesting + 1)
    return _Variable(name[0], operator[0], word), end + 1


def _bad(text: str, at: int, problem: str) -> UsageError:
    return UsageError(
        f"{problem} (character {at + 1} of {len(text)})",
        hint="write $$ for a dollar sign; ${NAME}, ${NAME:-DEFAULT}, ${NAME:?MESSAGE} or "
        "${NAME:+TEXT} for a variable",
    )
