"""vmrun's own files on the host: one 0700-like directory per guest, its intent and its owner.

A guest's directory is made, with the intent to create the guest written in it, before anything
else is; liveness is a lock held by the owner process, never a stored flag.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vmrun.host.acl import open_to
from vmrun.host.lock import exclusive
from vmrun.model.errors import NameInUse, StateError
from vmrun.model.plan import EMBEDDED
from vmrun.model.tenant import DEFAULT_TENANT, Share

_RUN_ID = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_SUN_PATH = 107
_LOCK = ".lock"
_INTENT = "intent.json"
_OWNER = "owner"
_LONGEST_BELOW_GUEST = len("/r/lib/qemu/domain-1-vmrun-0123456789ab/monitor.sock")


@dataclass(frozen=True, slots=True)
class StateDirectories:
    """Where vmrun keeps things: ``guests`` and ``cache`` are this user's, ``bases`` are looked
    through in order and the first is built into. What an image brought, or was found out about it,
    is kept apart for each ``tenant``; empty is the default one."""

    guests: Path
    cache: Path
    bases: tuple[Path, ...]
    tenant: str = ""

    def for_tenant(self, name: str) -> StateDirectories:
        """The same for a tenant."""
        return replace(self, tenant="" if name == DEFAULT_TENANT else name)

    @property
    def _own(self) -> Path:
        return self.tenants / self.tenant if self.tenant else self.guests.parent

    @property
    def images(self) -> Path:
        """Pulled blobs, and what is known of each image."""
        return self._own / "images"

    @property
    def scans(self) -> Path:
        """What scans have found, by image digest."""
        return self._own / "scans"

    @property
    def ledger(self) -> Path:
        """The newest signature seen for each name."""
        return self._own / "ledger"

    @property
    def catalogues(self) -> Path:
        """Trusted metadata of TUF catalogues."""
        return self.guests.parent / "catalogues"

    @property
    def journal(self) -> Path:
        """What happened, for good."""
        return self.guests.parent / "journal"

    @property
    def runs(self) -> Path:
        """Records and logs of runs, also of those that have ended."""
        return self.guests.parent / "runs"

    @property
    def volumes(self) -> Path:
        """Named volumes, by tenant."""
        return self.guests.parent / "volumes"

    @property
    def tenants(self) -> Path:
        """Tenants and what they may use."""
        return self.guests.parent / "tenants"

    @property
    def advisories(self) -> Path:
        """Offline databases of advisories, unless the settings name others."""
        return self.guests.parent / "advisories"


@dataclass(frozen=True, slots=True)
class Intent:
    """What a run is about to create; enough to remove it when the run is dead."""

    run_id: str
    name: str
    tenant: str
    uuid: str
    domain: str
    slot: int
    connect: str
    owner: int
    created: float
    kept_until: float = 0.0
    image: str = ""
    """The reference of what it runs, once that was verified."""
    image_digest: str = ""
    digests: tuple[str, ...] = ()
    """All digests of that image, and ``keys``, the ids of the keys that vouched for it: what a
    later revocation is compared with."""
    keys: tuple[str, ...] = ()
    shared: bool = False
    """A tenant's guest: it holds several containers, each a run of its own."""
    memory: int = 0
    """What the run takes of its tenant's quota; ``passing``, ``cpus`` and ``disk`` likewise
    (:class:`~vmrun.model.tenant.Share`)."""
    passing: int = 0
    cpus: float = 0.0
    disk: int = 0
    guest: str = ""
    """The tenant's guest that it is in, by run id; empty for one that has a guest of its own."""

    @property
    def share(self) -> Share:
        """What the run takes of its tenant's quota."""
        return Share(self.memory, self.passing, float(self.cpus), self.disk)


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
            _write_intent(self.path, self.intent)

    def open_to(self, qemu_uid: int | None) -> None:
        """Let the user of its QEMU walk through, and nobody else: not even the QEMU of another
        guest. Where the file system cannot say that, others can walk through as well, and meet
        what is closed to them itself."""
        if qemu_uid is None:
            return
        try:
            open_to(self.path, qemu_uid)
        except OSError as error:
            raise _unusable(self.path, error) from error

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
            _write_intent(self.path, intent)
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.intent = intent

    def clear(self) -> None:
        """Delete what is in it but for what says whose it is."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.path)):
                if entry.name in (_INTENT, _OWNER):
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


class ContainerDirectory(GuestDirectory):
    """The directory of a container that has no guest of its own, inside that of its tenant's guest,
    which takes it along when it is removed. It is there as long as anybody holds its lock: the
    command that decides about the run, then the owner of the guest."""


def claim_container(guest: Path, intent: Intent) -> ContainerDirectory:
    """Make the directory of one more container in the tenant's guest at ``guest``.

    Raises :class:`StateError` when it cannot be made, as when that guest has ended.
    """
    place = _containers(guest)
    partial = place / f".{intent.run_id}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        partial.mkdir(mode=0o700)
        lock = _hold(partial)
        _write_intent(partial, intent)
        path = partial.rename(place / intent.run_id)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _unusable(place, error) from error
    return ContainerDirectory(path, intent, lock)


def hold_container(guest: Path, run_id: str) -> ContainerDirectory:
    """Hold the directory that :func:`claim_container` has made, so that it stays. Raises
    :class:`StateError` when there is none."""
    path = _containers(guest) / run_id
    intent = _read_intent(path) if _RUN_ID.fullmatch(run_id) else None
    if intent is None:
        raise StateError(f"run {run_id[:40]!r} has no directory in guest {guest.name}")
    try:
        return ContainerDirectory(path, intent, _hold(path))
    except OSError as error:
        raise _unusable(path, error) from error


def sweep_containers(guest: Path) -> None:
    """Delete the directories of containers that nobody holds (any more)."""
    place = _containers(guest)
    if not place.is_dir():
        return
    for path in place.iterdir():
        if _RUN_ID.fullmatch(path.name) and not _owned(path):
            shutil.rmtree(path, ignore_errors=True)


def _containers(guest: Path) -> Path:
    return guest / "c"


def _hold(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path / _OWNER, flags, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def inherited(directories: StateDirectories, run_id: str, lock: int) -> GuestDirectory:
    """The directory of a guest whose ownership this process was started with."""
    path = directories.guests / run_id
    intent = _read_intent(path)
    if intent is None:
        raise StateError(f"{path / _INTENT} is damaged")
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
        raise _unusable(guests, error) from error


def _unusable(guests: Path, error: OSError) -> StateError:
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
        _write_intent(path, intent)
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
                intent = _read_intent(path)
                if intent is not None and intent.kept_until > time.time():
                    continue
                lock = _take(path, create=True)
                if lock is not None:
                    found.append(GuestDirectory(path, intent or _unknown(path), lock))
    except OSError as error:
        raise _unusable(guests, error) from error
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
            if _RUN_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
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
                place = _containers(path)
                if intent is not None and intent.shared and place.is_dir():
                    names = sorted(name for name in os.listdir(place) if _RUN_ID.fullmatch(name))
                    found += [_live_intent(place / name) for name in names]
    except OSError as error:
        raise _unusable(guests, error) from error
    return tuple(intent for intent in found if intent is not None)


def _live_intent(path: Path) -> Intent | None:
    intent = _read_intent(path)
    if intent is not None:
        return intent if intent.kept_until > time.time() or _owned(path) else None
    # One that is being removed may have lost its intent already.
    if _owned(path) and (path / _INTENT).exists():
        raise StateError(
            f"{path / _INTENT} of a live guest is damaged",
            hint="end that guest: find its process with: fuser -v on the file 'owner' beside it",
        )
    return None


def _well_formed(intent: Intent, path: Path) -> bool:
    """Whether it is this directory's, with fields of the types that they must have."""
    texts = (
        *(intent.name, intent.tenant, intent.uuid, intent.connect, intent.image, intent.guest),
        *(intent.image_digest, *intent.digests, *intent.keys),
    )
    numbers = (intent.kept_until, intent.created, intent.cpus)
    counts = (intent.slot, intent.memory, intent.passing, intent.disk)
    return (
        intent.run_id == path.name
        and intent.domain == f"vmrun-{path.name}"
        and all(isinstance(text, str) for text in texts)
        and all(type(number) in (int, float) for number in numbers)
        and type(intent.owner) is int
        and all(type(count) is int for count in counts)
        and type(intent.shared) is bool
    )


def _owned(path: Path) -> bool:
    lock = _take(path)
    if lock is not None:
        os.close(lock)
    return lock is None and path.exists()


def find(directories: StateDirectories, selector: str) -> tuple[Path, Intent]:
    """The guest with that name or run id; :class:`StateError` if there is none."""
    try:
        found = list(_all(directories.guests))
    except OSError as error:
        raise _unusable(directories.guests, error) from error
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
        raise _unusable(path, error) from error
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
        intent = _read_intent(path)
        if intent is not None:
            yield path, intent


def _read_intent(path: Path) -> Intent | None:
    try:
        fields = json.loads((path / _INTENT).read_text())
        lists = {name: tuple(fields.get(name, ())) for name in ("digests", "keys")}
        intent = Intent(**(fields | lists))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return intent if _well_formed(intent, path) else None


def _write_intent(path: Path, intent: Intent) -> None:
    partial = path / f"{_INTENT}.partial"
    partial.write_text(json.dumps(asdict(intent), indent=1))
    partial.chmod(0o600)
    partial.replace(path / _INTENT)


def _take(path: Path, *, create: bool = False) -> int | None:
    """The lock of a guest's directory; None when another process has it, or there is none."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path / _OWNER, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
