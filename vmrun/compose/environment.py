"""``environment``, ``env_file`` and ``labels`` of a service (05-services.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmrun.compose import dotenv
from vmrun.compose.context import Context
from vmrun.compose.field import Field
from vmrun.compose.interpolate import lookup
from vmrun.model.errors import UsageError

RESERVED = "vmrun."
"""How labels begin by which vmrun finds the services of a project again."""

_MOST = 2_000
_LABELS = 256
_LABEL_CHARACTERS = 4_096


def read_environment(fields: Mapping[str, Field], context: Context) -> tuple[tuple[str, str], ...]:
    """Variables of the container: those of the files in their order, then those of the file
    itself. One without a value is passed on from vmrun's own environment, if it is set there."""
    values: dict[str, str] = {}
    if "env_file" in fields:
        for item in fields["env_file"].one_or_more(16):
            values.update(_env_file(item, context))
    if "environment" in fields:
        for name, value, item in _pairs(fields["environment"], _MOST):
            if not name or "=" in name or not name.isprintable():
                raise item.wrong(f"not the name of a variable: {name[:80]!r}", "write NAME=VALUE")
            passed = _passed(name, item, context) if value is None else value
            if passed is None:
                values.pop(name, None)
            else:
                values[name] = passed
    return tuple(values.items())


def _passed(name: str, item: Field, context: Context) -> str | None:
    try:
        return lookup(context.variables, name)
    except UsageError as error:
        raise item.rethrow(error) from None


def read_labels(field: Field) -> tuple[tuple[str, str], ...]:
    """Names and values; a label without a value has the empty one."""
    found: dict[str, str] = {}
    for name, value, item in _pairs(field, _LABELS):
        text = value or ""
        if not name.strip() or not name.isprintable() or len(name) + len(text) > _LABEL_CHARACTERS:
            raise item.wrong(
                f"not a label: {name[:80]!r}", f"NAME=VALUE, at most {_LABEL_CHARACTERS} characters"
            )
        if name.lower().startswith(RESERVED):
            raise item.wrong(f"{name[:80]!r} is a label of vmrun's own", "choose another name")
        found[name] = text
    return tuple(found.items())


def _pairs(field: Field, limit: int) -> list[tuple[str, str | None, Field]]:
    """Both forms: a mapping, whose values may be null, or a list of ``NAME=VALUE`` and ``NAME``."""
    if field.is_mapping:
        return [
            (name, None if item.null else item.text(empty=True), item)
            for name, item in field.named(limit).items()
        ]
    found: dict[str, tuple[str, str | None, Field]] = {}
    for item in field.items(limit):
        name, equals, value = item.text().partition("=")
        if name in found:
            raise item.wrong(f"{name[:80]!r} stands there twice", "remove one of them")
        found[name] = (name, value if equals else None, item)
    return list(found.values())


def _env_file(item: Field, context: Context) -> dict[str, str]:
    raw, required, source = False, True, item
    if item.is_mapping:
        fields = item.section(("path", "required", "format"))
        if "path" not in fields:
            raise item.wrong("has no 'path'", "name the file")
        source = fields["path"]
        required = fields["required"].boolean() if "required" in fields else True
        raw = "format" in fields and fields["format"].choice({"raw": True})
    path: Path = context.host_path(source)
    data = context.files.read(path, dotenv.MAX_BYTES)
    if data is None:
        if required:
            raise source.wrong(f"no such file: {path}", "make it, or write 'required: false'")
        return {}
    try:
        return dotenv.parse_variables(data, str(path), context.variables, raw=raw)
    except UsageError as error:
        raise source.rethrow(error) from None
