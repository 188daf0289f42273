"""vmrun's own files on the host: one 0700-like directory per guest, its intent and its owner.

A guest's directory is made, with the intent to create the guest written in it, before anything
else is; liveness is a lock held by the owner process, never a stored flag.
"""

from __future__ import annotations

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

from vmrun.host.lock import exclusive
from vmrun.model.errors import NameInUse, StateError

_RUN_ID = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_SUN_PATH = 107
_LONGEST_BELOW_GUEST = len("/r/lib/qemu/domain-1-vmrun-0123456789ab/monitor.sock")


@dataclass(frozen=True, slots=True)
class StateDirectories:
    """Where vmrun keeps things: ``guests`` and ``cache`` are this user's, ``bases`` are looked
    through in order and the first is built into."""

    guests: Path
    cache: Path
    bases: tuple[Path, ...]

    @property
    def images(self) -> Path:
        """Pulled blobs, and what is known of each image."""
        return self.guests.parent / "images"

    @property
    def scans(self) -> Path:
        """What scans have found, by image digest."""
        return self.guests.parent / "scans"

    @property
    def ledger(self) -> Path:
        """The newest signature seen for each name."""
        return self.guests.parent / "ledger"

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


class GuestDirectory:
    """The directory of one guest, owned by this process while ``lock`` is open."""

    def __init__(self, path: Path, intent: Intent, lock: int) -> None:
        self.path = path
        self.intent = intent
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
        """This process is the owner that people are told of from here on."""
        self._change(replace(self.intent, owner=os.getpid()))

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

    def _change(self, intent: Intent) -> None:
        _write_intent(self.path, intent)
        self.intent = intent

    def remove(self) -> bool:
        """Delete it and everything in it; whether it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        return not self.path.exists()

    def release(self) -> None:
        """Give up ownership."""
        os.close(self._lock)


def inherited(directories: StateDirectories, run_id: str, lock: int) -> GuestDirectory:
    """The directory of a guest whose ownership this process was started with."""
    path = directories.guests / run_id
    intent = _read_intent(path)
    if intent is None:
        raise StateError(f"{path / 'intent.json'} is damaged")
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
    if name is not None and _NAME.fullmatch(name) is None:
        raise StateError(
            f"not a name: {name[:80]!r}", hint="letters, digits and hyphens, at most 63"
        )
    guests = directories.guests
    if len(os.fsencode(guests)) + 13 + _LONGEST_BELOW_GUEST > _SUN_PATH:
        raise StateError(
            f"{guests} is too long a path: Unix sockets below it would not fit",
            hint="set VMRUN_STATE_DIR to a shorter one",
        )
    try:
        # QEMU runs as a user of its own and must be able to walk through.
        guests.mkdir(parents=True, exist_ok=True, mode=0o711)
        with exclusive(guests / ".lock"):
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
    try:
        lock = _take(path)
        _write_intent(path, intent)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    if lock is None:
        raise StateError(f"{path} is owned by another process")
    return GuestDirectory(path, intent, lock)


def orphans(directories: StateDirectories) -> Iterator[GuestDirectory]:
    """The guests whose owner is gone and that nobody asked to keep, each now owned by us."""
    guests = directories.guests
    try:
        if not guests.is_dir():
            return
        with exclusive(guests / ".lock"):
            found = list(_all(guests))
            incomplete = [p for p in guests.iterdir() if _RUN_ID.fullmatch(p.name)]
            for path in {*incomplete} - {path for path, _ in found}:
                # Claiming is done under the lock that we hold: without an intent nothing was made.
                # One that has an owner is somebody's live guest, whatever became of its intent.
                if not _owned(path):
                    shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise _unusable(guests, error) from error
    for path, intent in found:
        if intent.kept_until > time.time():
            continue
        lock = _take(path)
        if lock is not None:
            yield GuestDirectory(path, intent, lock)


def alive(directories: StateDirectories) -> tuple[Intent, ...]:
    """The guests that have an owner, or that were kept for a look.

    Raises :class:`StateError` when such a guest's intent cannot be read: what runs in it is then
    unknown, which must not read as nothing.
    """
    guests = directories.guests
    try:
        if not guests.is_dir():
            return ()
        # A claim in progress must not find its lock taken by our look at it.
        with exclusive(guests / ".lock"):
            found = [_live_intent(p) for p in sorted(guests.iterdir()) if _RUN_ID.fullmatch(p.name)]
    except OSError as error:
        raise _unusable(guests, error) from error
    return tuple(intent for intent in found if intent is not None)


def _live_intent(path: Path) -> Intent | None:
    intent = _read_intent(path)
    if intent is not None and _well_formed(intent):
        return intent if intent.kept_until > time.time() or _owned(path) else None
    # One that is being removed may have lost its intent already.
    if _owned(path) and (path / "intent.json").exists():
        raise StateError(
            f"{path / 'intent.json'} of a live guest is damaged",
            hint="end that guest: find its process with: fuser -v on the file 'owner' beside it",
        )
    return None


def _well_formed(intent: Intent) -> bool:
    texts = (intent.run_id, intent.name, intent.image, intent.image_digest)
    return (
        all(isinstance(text, str) for text in (*texts, *intent.digests, *intent.keys))
        and type(intent.kept_until) in (int, float)
        and type(intent.owner) is int
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
    """Own a guest that has no owner; :class:`StateError` when it has one."""
    lock = _take(path)
    if lock is None:
        raise StateError(
            f"run {intent.name!r} is alive", hint=f"end its process first: kill {intent.owner}"
        )
    return GuestDirectory(path, intent, lock)


def _all(guests: Path) -> Iterator[tuple[Path, Intent]]:
    if not guests.is_dir():
        return
    for path in sorted(guests.iterdir()):
        if _RUN_ID.fullmatch(path.name):
            intent = _read_intent(path)
            if intent is not None:
                yield path, intent


def _read_intent(path: Path) -> Intent | None:
    try:
        fields = json.loads((path / "intent.json").read_text())
        lists = {name: tuple(fields.get(name, ())) for name in ("digests", "keys")}
        return Intent(**(fields | lists))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write_intent(path: Path, intent: Intent) -> None:
    partial = path / "intent.json.partial"
    partial.write_text(json.dumps(asdict(intent), indent=1))
    partial.chmod(0o600)
    partial.replace(path / "intent.json")


def _take(path: Path) -> int | None:
    try:
        descriptor = os.open(path / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
