"""tmpfs of a service, in the forms of ``tmpfs`` and ``volumes`` (05-services.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vmrun.compose.field import Field
from vmrun.compose.values import mount_point, size
from vmrun.model.errors import UsageError
from vmrun.model.quantity import parse_size
from vmrun.model.workload import TmpfsMount


def read_long_tmpfs(fields: Mapping[str, Field], target: str) -> TmpfsMount:
    """``{type: tmpfs, target: PATH, tmpfs: {size: 16m}}`` of ``volumes``."""
    for key in ("source", "read_only"):
        if key in fields:
            raise fields[key].wrong("a tmpfs has none", "remove it")
    if "tmpfs" not in fields:
        return TmpfsMount(target)
    options = fields["tmpfs"].section(("size", "mode"))
    if "mode" in options:
        text = options["mode"].word()
        # Without a 0 before it, YAML's number is a decimal one.
        _check_mode(options["mode"], text if text.startswith("0") else f"decimal {text}")
    return TmpfsMount(target, size(options["size"]) if "size" in options else None)


def read_tmpfs(item: Field) -> TmpfsMount:
    """``PATH`` or ``PATH:size=16m,exec`` of ``tmpfs``."""
    path, _, options = item.word().partition(":")
    mount = TmpfsMount(mount_point(item, path))
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key == "size":
            mount = replace(mount, size=_tmpfs_size(item, value))
        elif key == "mode":
            _check_mode(item, value)
        elif key in ("uid", "gid"):
            raise item.wrong(f"{key} is not supported", "a tmpfs belongs to the container's user")
        elif option == "exec":
            mount = replace(mount, executable=True)
        elif option not in ("noexec", "nosuid", "nodev", "rw"):
            raise item.wrong(f"unknown option {option[:80]!r}", "known: size=64m, exec, mode=1777")
    return mount


def _tmpfs_size(item: Field, text: str) -> int:
    try:
        found = parse_size(text, option="size")
    except UsageError as error:
        raise item.rethrow(error) from None
    if not 0 < found < 1 << 50:
        # The kernel would take 0 as no limit at all.
        raise item.wrong("size=0 is no limit", "e.g. size=64m")
    return found


def _check_mode(item: Field, text: str) -> None:
    if text.removeprefix("0o").lstrip("0") != "1777":
        raise item.wrong(
            f"mode {text[:80]!r} is not supported",
            "a tmpfs has mode 1777 and belongs to the container's user: remove the mode",
        )
