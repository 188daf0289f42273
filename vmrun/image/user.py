"""Which ids a container gets for the user that its image or its caller names.

The rules are Docker's (moby/sys/user, GetExecUserPath).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.image.accounts import parse_id
from vmrun.model.errors import ImageError
from vmrun.model.image import Account, FileTree


@dataclass(frozen=True, slots=True)
class User:
    """The ids to run with. ``name`` is empty and ``home`` is ``/`` without an account."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups."""
    name: str = ""
    home: str = "/"


def resolve_user(text: str, tree: FileTree) -> User:
    """Resolve ``""`` (root), ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``.

    Digits are an id, never a name. An id needs no account; with one, the account's group
    and home apply. A group that is given replaces the account's, supplementary ones too.
    """
    user, _, group = text.partition(":")
    account = _account(user, tree)
    if account is None:
        chosen = User(uid=_id_without_account(user), gid=0)
    else:
        chosen = User(account.uid, account.gid, account.groups, account.name, account.home or "/")
    if not group:
        return chosen
    return User(chosen.uid, _group(group, tree), (), chosen.name, chosen.home)


def _account(user: str, tree: FileTree) -> Account | None:
    uid = parse_id(user or "0")
    for account in tree.accounts:
        if account.uid == uid if uid is not None else account.name == user:
            return account
    return None


def _id_without_account(user: str) -> int:
    uid = parse_id(user or "0")
    if uid is None:
        raise ImageError(
            f"the image has no user {user[:80]!r} in /etc/passwd",
            hint="name a user of the image, or a numeric id",
        )
    return uid


def _group(group: str, tree: FileTree) -> int:
    gid = parse_id(group)
    if gid is None:
        gid = tree.groups.get(group)
    if gid is None:
        raise ImageError(
            f"the image has no group {group[:80]!r} in /etc/group",
            hint="name a group of the image, or a numeric id",
        )
    return gid
