"""vmrun's own files on the host: one 0700-like directory per guest, its intent and its owner.

A guest's directory is made, with the intent to create the guest written in it, before anything
else is; liveness is a lock held by the owner process, never a stored flag.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from vmrun.host.acl import open_to
from vmrun.host.lock import exclusive
from vmrun.model.errors import NameInUse, StateError
from vmrun.model.plan import EMBEDDED
from vmrun.model.tenant import Share
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import INTENT, Intent, read_intent, write_intent

RUN_ID = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_SUN_PATH = 107
_LOCK = ".lock"
OWNER = "owner"
_LONGEST_BELOW_GUEST = len("/r/lib/qemu/domain-1-vmrun-0123456789ab/monitor.sock")


class GuestDirectory:
    """The directory of one guest, owned by this process while ``lock`` is open."""

    def __init__(self, path: Path, intent: Intent, lock: int) -> None:
        self.path = path
        self.intent = intent
        self.released = False
        self._lock = lock

    @property
    def hypervisor_root(self) -> Path:
        """The embedded driver's own root."""
        return self.path / "r"

    @property
    def image(self) -> Path:
        """The private image layout."""
        return self.path / "image"

    @property
    def lock(self) -> int:
        """The descriptor whose lock is the ownership; a child that inherits it owns it as well."""
        return self._lock

    def adopt(self) -> None:
        """This process is the owner that people are told of from here on; on a full disk they are
        told of the one before, which keeps nobody from owning it."""
        self.intent = replace(self.intent, owner=os.getpid())
        with contextlib.suppress(OSError):
            write_intent(self.path, self.intent)

    def open_to(self, qemu_uid: int | None) -> None:
        """Let the user of its QEMU walk through, and nobody else: not even the QEMU of another
        guest. Where the file system cannot say that, others can walk through as well, and meet
        what is closed to them itself."""
        if qemu_uid is None:
            return
        try:
            open_to(self.path, qemu_uid)
        except OSError as error:
            raise unusable(self.path, error) from error

    def keep(self, seconds: float) -> None:
        """Mark it as kept for a look, until ``seconds`` from now."""
        self._change(replace(self.intent, kept_until=time.time() + seconds))

    def note_image(
        self, image: str, digest: str, *, digests: tuple[str, ...], keys: tuple[str, ...]
    ) -> None:
        """Write down what it is about to run and who vouched for that."""
        self._change(
            replace(self.intent, image=image, image_digest=digest, digests=digests, keys=keys)
        )

    def note_share(self, share: Share) -> None:
        """Write down what it takes of its tenant's quota."""
        self._change(replace(self.intent, **asdict(share)))

    def _change(self, intent: Intent) -> None:
        try:
            write_intent(self.path, intent)
        except OSError as error:
            raise unusable(self.path, error) from error
        self.intent = intent

    def clear(self) -> None:
        """Delete what is in it but for what says whose it is."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.path)):
                if entry.name in (INTENT, OWNER):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)

    def remove(self) -> bool:
        """Delete it and everything in it; whether it is gone."""
        self.clear()
        # Nobody may look at it while it has lost its intent and not yet its lock.
        with contextlib.suppress(OSError), exclusive(self.path.parent / _LOCK):
            shutil.rmtree(self.path, ignore_errors=True)
        return not os.path.lexists(self.path)

    def release(self) -> None:
        """Give up ownership."""
        os.close(self._lock)
        self.released = True


def checked_name(name: str) -> str:
    """``name``, if a run can have it. Raises :class:`StateError`."""
    if _NAME.fullmatch(name) is None:
        raise StateError(
            f"not a name: {name[:80]!r}", hint="letters, digits and hyphens, at most 63"
        )
    return name


def inherited(directories: StateDirectories, run_id: str, lock: int) -> GuestDirectory:
    """The directory of a guest whose ownership this process was started with."""
    path = directories.guests / run_id
    intent = read_intent(path)
    if intent is None:
        raise StateError(f"{path / INTENT} is damaged")
    os.set_inheritable(lock, False)
    return GuestDirectory(path, intent, lock)


def claim(
    directories: StateDirectories,
    *,
    name: str | None,
    tenant: str,
    connect: str,
    shared: bool = False,
) -> GuestDirectory:
    """Make a new guest's directory with its intent, owned by this process.

    Raises :class:`NameInUse` when a live run has that name, :class:`StateError` when the
    directory cannot be made.
    """
    if name is not None:
        checked_name(name)
    guests = directories.guests
    if len(os.fsencode(guests)) + 13 + _LONGEST_BELOW_GUEST > _SUN_PATH:
        raise StateError(
            f"{guests} is too long a path: Unix sockets below it would not fit",
            hint="set VMRUN_STATE_DIR to a shorter one",
        )
    try:
        # QEMU runs as a user of its own and must be able to walk through.
        guests.mkdir(parents=True, exist_ok=True, mode=0o711)
        with exclusive(guests / _LOCK):
            return _claim(guests, name=name, tenant=tenant, connect=connect, shared=shared)
    except OSError as error:
        raise unusable(guests, error) from error


def unusable(guests: Path, error: OSError) -> StateError:
    """The error for a directory of guests that cannot be written."""
    return StateError(
        f"cannot write {guests}: {error.strerror}",
        hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
    )


def _claim(
    guests: Path, *, name: str | None, tenant: str, connect: str, shared: bool
) -> GuestDirectory:
    intents = [intent for _, intent in _all(guests)]
    run_id = uuid.uuid4().hex[:12]
    chosen = name or run_id
    for other in intents:
        if other.name == chosen:
            raise NameInUse(
                f"the name {chosen!r} is in use by run {other.run_id}",
                hint=f"choose another --name, or end that run (process {other.owner})",
            )
    taken = {intent.slot for intent in intents}
    intent = Intent(
        run_id=run_id,
        name=chosen,
        tenant=tenant,
        uuid=str(uuid.uuid4()),
        domain=f"vmrun-{run_id}",
        slot=next(number for number in range(len(taken) + 1) if number not in taken),
        connect=connect,
        owner=os.getpid(),
        created=time.time(),
        shared=shared,
    )
    path = guests / run_id
    path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
    lock = None
    try:
        lock = _take(path, create=True)
        write_intent(path, intent)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        raise
    if lock is None:
        raise StateError(f"{path} is owned by another process")
    return GuestDirectory(path, intent, lock)


def orphans(directories: StateDirectories) -> Iterator[GuestDirectory]:
    """The guests whose owner is gone and that nobody asked to keep, each now owned by us.

    One without a readable intent is among them, named by its directory alone: what a claim that
    was cut short has left, or somebody's damage. Raises :class:`StateError`.
    """
    guests = directories.guests
    found = []
    try:
        if not guests.is_dir():
            return
        # Claims are made under this lock: a directory that nobody owns is nobody's.
        with exclusive(guests / _LOCK):
            for path in _directories(guests):
                intent = read_intent(path)
                if intent is not None and intent.kept_until > time.time():
                    continue
                lock = _take(path, create=True)
                if lock is not None:
                    found.append(GuestDirectory(path, intent or _unknown(path), lock))
    except OSError as error:
        raise unusable(guests, error) from error
    yield from found


def _unknown(path: Path) -> Intent:
    """All that is known of a guest whose intent is not there: its id, and with it its domain."""
    return Intent(
        run_id=path.name,
        name=path.name,
        tenant="",
        uuid="",
        domain=f"vmrun-{path.name}",
        slot=-1,
        connect=EMBEDDED,
        owner=0,
        created=0.0,
    )


def _directories(guests: Path) -> list[Path]:
    """The directories of guests. What else lies there, such as a link to a place that somebody
    else owns, is none of vmrun's."""
    with os.scandir(guests) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if RUN_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )


def alive(directories: StateDirectories) -> tuple[Intent, ...]:
    """The guests that have an owner, or that were kept for a look, and the containers in those of
    tenants.

    Raises :class:`StateError` when such a guest's intent cannot be read: what runs in it is then
    unknown, which must not read as nothing.
    """
    guests = directories.guests
    try:
        if not guests.is_dir():
            return ()
        # A claim in progress must not find its lock taken by our look at it.
        with exclusive(guests / _LOCK):
            paths = _directories(guests)
            found = [_live_intent(path) for path in paths]
            for path, intent in zip(paths, tuple(found), strict=True):
                place = containers_of(path)
                if intent is not None and intent.shared and place.is_dir():
                    names = sorted(name for name in os.listdir(place) if RUN_ID.fullmatch(name))
                    found += [_live_intent(place / name) for name in names]
    except OSError as error:
        raise unusable(guests, error) from error
    return tuple(intent for intent in found if intent is not None)


def _live_intent(path: Path) -> Intent | None:
    intent = read_intent(path)
    if intent is not None:
        return intent if intent.kept_until > time.time() or is_owned(path) else None
    # One that is being removed may have lost its intent already.
    if is_owned(path) and (path / INTENT).exists():
        raise StateError(
            f"{path / INTENT} of a live guest is damaged",
            hint="end that guest: find its process with: fuser -v on the file 'owner' beside it",
        )
    return None


def containers_of(guest: Path) -> Path:
    """Where the directories of the containers in a tenant's guest are."""
    return guest / "c"


def is_owned(path: Path) -> bool:
    """Whether anybody holds the directory of a guest, or of a container."""
    lock = _take(path)
    if lock is not None:
        os.close(lock)
    return lock is None and path.exists()


def find(directories: StateDirectories, selector: str) -> tuple[Path, Intent]:
    """The guest with that name or run id; :class:`StateError` if there is none."""
    try:
        found = list(_all(directories.guests))
    except OSError as error:
        raise unusable(directories.guests, error) from error
    for path, intent in found:
        if selector in (intent.name, intent.run_id):
            return path, intent
    raise StateError(f"no guest {selector!r}", hint="it has ended, or the name is misspelt")


def take(path: Path, intent: Intent) -> GuestDirectory:
    """Own a guest that has no owner; :class:`StateError` when it has one, or is gone."""
    try:
        with exclusive(path.parent / _LOCK):
            lock = _take(path)
    except OSError as error:
        raise unusable(path, error) from error
    if lock is None and not path.exists():
        raise StateError(f"run {intent.name!r} has just ended", hint="see 'vmrun ps -a'")
    if lock is None:
        raise StateError(
            f"run {intent.name!r} is alive", hint=f"end its process first: kill {intent.owner}"
        )
    return GuestDirectory(path, intent, lock)


def _all(guests: Path) -> Iterator[tuple[Path, Intent]]:
    if not guests.is_dir():
        return
    for path in _directories(guests):
        intent = read_intent(path)
        if intent is not None:
            yield path, intent


def _take(path: Path, *, create: bool = False) -> int | None:
    """The lock of a guest's directory; None when another process has it, or there is none."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path / OWNER, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
