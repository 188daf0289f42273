"""``volume.json``: what is known of a volume. Strict: anything that vmrun did not write is an
error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from vmrun.model.errors import StateError
from vmrun.model.storage import Volume

LONGEST = 64 << 10
_KEYS = {
    "name": str,
    "tenant": str,
    "size": int,
    "created": float,
    "passphrase_file": str,
    "passphrase_command": str,
}


def as_json(volume: Volume) -> bytes:
    """The file's bytes."""
    fields = {key: getattr(volume, key) for key in _KEYS}
    file = volume.passphrase_file
    fields["passphrase_file"] = "" if file is None else str(file)
    return json.dumps(fields, indent=1).encode() + b"\n"


def parse_description(text: bytes, *, name: str, tenant: str, path: Path) -> Volume:
    """Read it back; it must be of the volume ``name`` of ``tenant``. Raises :class:`StateError`."""

    def wrong(why: str) -> NoReturn:
        raise StateError(
            f"{path}/volume.json {why}", hint="restore it from a backup; the disk is beside it"
        )

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            wrong("has a key twice")
        return dict(pairs)

    if len(text) > LONGEST:
        wrong("is too long")
    try:
        fields = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        wrong("is damaged")
    if not isinstance(fields, dict) or fields.keys() != _KEYS.keys():
        wrong("has other fields than it should")
    for key, kind in _KEYS.items():
        if type(fields[key]) is not kind:
            wrong(f"has a wrong {key}")
    if (fields["name"], fields["tenant"]) != (name, tenant):
        wrong(f"is that of {fields['name']!r} of tenant {fields['tenant']!r}")
    file, command = str(fields["passphrase_file"]), str(fields["passphrase_command"])
    if bool(file) == bool(command) or "\0" in file + command or not 0 < fields["size"] < 1 << 60:
        wrong("does not say where its passphrase comes from, or how large it is")
    return Volume(
        name=name,
        tenant=tenant,
        size=fields["size"],
        path=path,
        created=fields["created"],
        passphrase_file=Path(file) if file else None,
        passphrase_command=command,
    )
