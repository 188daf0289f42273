"""Files of variables: ``.env``, and what ``env_file`` names (Compose specification,
05-services.md, "Env_file format").

Messages name the line and never quote it, because such files hold passwords.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmrun.compose.interpolate import Variables, lookup
from vmrun.model.errors import UsageError

MAX_BYTES = 1 << 20
MAX_VARIABLES = 2_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "$": "$$"}
_COMMENT = re.compile(r"(?<=\s)#")


def parse_variables(
    data: bytes, where: str, known: Mapping[str, str], *, raw: bool = False
) -> dict[str, str]:
    """The variables of a file, ``NAME=VALUE`` a line; a NAME without ``=`` passes ``known``'s on.

    Values without quotes, and those in double ones, may use variables: ``known``'s, and those of
    earlier lines. With ``raw`` a value is what stands behind ``=``. Raises :class:`UsageError`.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where}: larger than {MAX_BYTES >> 20} MiB", hint="make it smaller")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8", hint="save it as UTF-8") from None
    if "\0" in text:
        raise UsageError(f"{where}: holds a NUL character", hint="remove it")
    found: dict[str, str] = {}
    # Not splitlines: a value may hold a form feed or U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            _line(line.removesuffix("\r"), found, known, raw=raw)
        except UsageError as error:
            raise UsageError(f"{where}:{number}: {error.message}", hint=error.hint) from None
        if len(found) > MAX_VARIABLES:
            raise UsageError(f"{where}: more than {MAX_VARIABLES} variables", hint="use fewer")
    return found


def _line(line: str, found: dict[str, str], known: Mapping[str, str], *, raw: bool) -> None:
    name, equals, value = line.partition("=")
    name = name.strip()
    if not raw:
        name = name.removeprefix("export ").strip()
    if _NAME.fullmatch(name) is None:
        raise UsageError("not NAME=VALUE", hint="one variable a line; # begins a comment")
    if not equals:
        passed = lookup(known, name)
        if passed is not None:
            found[name] = passed
        return
    found[name] = value if raw else _value(value.strip(), Variables({**found, **known}))


def _value(text: str, variables: Variables) -> str:
    quote = text[:1]
    if quote not in ("'", '"'):
        # A comment needs a space before it; a value that is one is no value.
        comment = 0 if text.startswith("#") else len(text)
        if match := _COMMENT.search(text):
            comment = match.start()
        return variables.expand(text[:comment].rstrip())
    inner, after = _quoted(text, quote)
    if after and not after.startswith("#"):
        raise UsageError("text after the closing quote", hint="only a comment may stand there")
    return inner if quote == "'" else variables.expand(inner)


def _quoted(text: str, quote: str) -> tuple[str, str]:
    """What stands in the quotes, and behind them. In single quotes only a quote is escaped."""
    parts: list[str] = []
    at = 1
    while at < len(text):
        character = text[at]
        if character == quote:
            return "".join(parts), text[at + 1 :].strip()
        following = text[at + 1 : at + 2]
        if character == "\\" and quote == '"' and following in _ESCAPES:
            parts.append(_ESCAPES[following])
            at += 2
        elif character == "\\" and following == quote:
            parts.append(quote)
            at += 2
        else:
            parts.append(character)
            at += 1
    raise UsageError("a quote that is not closed", hint="a value ends on its line")
