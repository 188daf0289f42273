"""/etc/passwd and /etc/group as far as choosing a user needs them.

Lines that do not parse are skipped, as in passwd(5) readers and in moby/sys/user, which
Docker uses: an image may hold comments or NIS entries there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmrun.model.image import Account

MAX_ID = (1 << 31) - 1
"""The largest id that Docker accepts for a user or group."""


def parse_accounts(passwd: bytes, group: bytes) -> tuple[tuple[Account, ...], Mapping[str, int]]:
    """Accounts in order with their supplementary groups, and group ids by name."""
    groups: dict[str, int] = {}
    memberships: dict[str, list[int]] = {}
    for name, gid, members in _groups(group):
        # The first line for a name counts, as in getgrnam(3).
        groups.setdefault(name, gid)
        for member in filter(None, members.split(",")):
            memberships.setdefault(member, []).append(gid)
    accounts = tuple(
        Account(name, uid, gid, home, tuple(dict.fromkeys(memberships.get(name, ()))))
        for name, uid, gid, home in _accounts(passwd)
    )
    return accounts, groups


def parse_id(text: str) -> int | None:
    """A uid or gid in decimal; none for anything else."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(MAX_ID)):
        return None
    return int(text) if int(text) <= MAX_ID else None


def _accounts(data: bytes) -> Iterator[tuple[str, int, int, str]]:
    for fields in _lines(data, 7):
        uid, gid = parse_id(fields[2]), parse_id(fields[3])
        if fields[0] and uid is not None and gid is not None:
            yield fields[0], uid, gid, fields[5]


def _groups(data: bytes) -> Iterator[tuple[str, int, str]]:
    for fields in _lines(data, 4):
        gid = parse_id(fields[2])
        if fields[0] and gid is not None:
            yield fields[0], gid, fields[3]


def _lines(data: bytes, fields: int) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "replace").split("\n"):
        parts = line.strip().split(":")
        if len(parts) == fields and "\0" not in line:
            yield parts
