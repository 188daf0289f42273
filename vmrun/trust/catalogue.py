"""Is this digest what the name means now? Asked of a TUF catalogue before an image runs.

A catalogue is a TUF repository (The Update Framework, specification 1.0) whose targets are names
``HOST/REPOSITORY:TAG`` and their hashes those of manifests, as Notary had it. No target is ever
downloaded: what counts is what the signed list says of it. python-tuf does the checking: versions
never go back, nothing expired counts, all parts belong together, and only keys that the newest
root names sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
)
from tuf.api.metadata import Metadata, Signed, TargetFile  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, Refused, VmrunError
from vmrun.model.image import Reference, Transport
from vmrun.trust.tuf_errors import bad_root, explain, explained, printable, unusable_state
from vmrun.trust.tuf_fetch import BASE, LIMITS, CacheFetcher, SourceUnreachable, open_source
from vmrun.trust.tuf_state import remembered

ROLES = ("root", "timestamp", "snapshot", "targets")
_UNREACHABLE = (SourceUnreachable, SlowRetrievalError)
_NOT_WHOLE = (DownloadHTTPError, LengthOrHashMismatchError, BadVersionNumberError)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What a catalogue says of ``name``.

    ``versions`` are those of the metadata that says so, by role, ``expires`` (seconds since 1970)
    when the first of them does. ``unreachable`` says why the source could not be asked, when the
    answer is from metadata that was fetched before.
    """

    name: str
    digest: Digest
    length: int
    versions: Mapping[str, int]
    expires: float
    source: str
    unreachable: str = ""

    def __str__(self) -> str:
        versions = ", ".join(f"{role} {version}" for role, version in self.versions.items())
        cached = f"; not reached now ({self.unreachable})" if self.unreachable else ""
        return (
            f"catalogue {self.source} names {self.digest} for {self.name}"
            f" ({versions}; good until {_date(self.expires)}{cached})"
        )


def catalogue_name(reference: Reference) -> str | None:
    """The name that a catalogue knows ``reference`` by; None for transports without one.

    Raises :class:`Refused` for a registry reference that has no tag: no catalogue can say whether
    a bare digest is still what anybody should run.
    """
    if reference.transport is not Transport.DOCKER:
        return None
    if not reference.tag:
        raise Refused(
            f"{reference} names no tag, and its catalogue lists tags",
            hint=f"name the tag too: {reference.path}:TAG@{reference.digest}",
        )
    return f"{reference.path}:{reference.tag}"


def check_catalogue(
    name: str,
    lineage: Sequence[Digest],
    *,
    source: str,
    root: bytes,
    state: Path,
    now: float,
    cert_dirs: tuple[Path, ...] = (),
) -> str:
    """Why the catalogue allows an image that ``name`` led to, as text.

    ``lineage`` are the digests of the indexes and the manifest (:class:`ImageDigests`): listing
    the index lists what it leads to. Raises :class:`Refused` when another digest is the current
    one, and as :func:`look_up` does.
    """
    entry = look_up(name, source=source, root=root, state=state, now=now, cert_dirs=cert_dirs)
    if entry.digest not in lineage:
        raise Refused(
            f"{name} led to {' in '.join(str(d) for d in reversed(lineage))}, but catalogue"
            f" {source} names {entry.digest}",
            hint="the tag was moved without the catalogue, or another image was put under it; who"
            f" released it lists it with: vmrun catalogue add DIR {name}",
        )
    return str(entry)


def look_up(
    name: str,
    *,
    source: str,
    root: bytes,
    state: Path,
    now: float,
    cert_dirs: tuple[Path, ...] = (),
) -> CatalogueEntry:
    """What the catalogue at ``source`` (an absolute directory or an https URL) says of ``name``.

    ``root`` is the root metadata that is trusted at first, ``state`` the folder in which newer
    metadata is remembered; it belongs to this one catalogue. ``now`` in seconds since 1970. When
    the source cannot be reached, what is remembered counts until it expires.

    Raises :class:`Refused` when the catalogue does not list the name or is not to be trusted
    (bad signatures, expired, rolled back, mixed), :class:`ImageError` when there is no metadata to
    judge, :class:`SettingsError` for a bad source or root, :class:`StateError` for a bad state.
    """
    fetcher = open_source(source, cert_dirs)
    with remembered(state):
        unreachable = ""
        try:
            with explained(source):
                target = _ask(name, fetcher, root, state, source)
        except VmrunError as error:
            if not isinstance(error.__cause__, _UNREACHABLE):
                raise
            unreachable = printable(error.__cause__)
            target = _recall(name, root, state, source, unreachable)
        versions, expires = _seen(state, source)
    if now >= expires:
        raise _expired(source, f"it was good until {_date(expires)}", unreachable)
    if target is None:
        raise Refused(
            f"catalogue {source} does not list {name}",
            hint="it was withdrawn, or never listed; who released it lists it with: vmrun catalogue"
            f" add DIR {name}",
        )
    return CatalogueEntry(
        name=name,
        digest=_digest(target, source),
        length=target.length,
        versions=versions,
        expires=expires,
        source=source,
        unreachable=unreachable,
    )


def _ask(
    name: str, fetcher: FetcherInterface, root: bytes, state: Path, source: str
) -> TargetFile | None:
    if not root:  # to some versions of python-tuf that means: whatever root is remembered
        raise bad_root(ValueError("it is empty"), source)
    try:
        updater = Updater(str(state), BASE, fetcher=fetcher, config=LIMITS, bootstrap=root)
    except RepositoryError as error:
        raise bad_root(error, source) from error
    updater.refresh()
    return updater.get_targetinfo(name)


def _recall(
    name: str, root: bytes, state: Path, source: str, unreachable: str
) -> TargetFile | None:
    """The same questions to what is remembered, under the same rules."""
    try:
        return _ask(name, CacheFetcher(state), root, state, source)
    except ExpiredMetadataError as error:
        raise _expired(source, printable(error), unreachable) from error
    except _NOT_WHOLE:
        # Nothing yet, or a part of what is newer: the source was lost while it was read.
        raise ImageError(
            f"catalogue {source} cannot be reached ({unreachable}), and no whole copy of it is"
            " remembered",
            hint="check the source in the trust rules, and the network",
        ) from None
    except OSError as error:
        raise unusable_state(error) from error
    except VmrunError:
        raise
    except Exception as error:
        raise explain(error, f"{source} (remembered; not reached: {unreachable})") from error


def _expired(source: str, what: str, unreachable: str) -> Refused:
    if unreachable:
        return Refused(
            f"catalogue {source} cannot be reached ({unreachable}), and what is remembered of it"
            f" has expired: {what}",
            hint="make the source reachable again; a copy of its files in a directory will do",
        )
    return Refused(
        f"catalogue {source} has expired: {what}",
        hint="if it is yours run: vmrun catalogue refresh; check this host's clock too",
    )


def _digest(target: TargetFile, source: str) -> Digest:
    found = target.hashes.get("sha256")
    try:
        return Digest.parse(f"sha256:{found}")
    except ImageError:
        raise Refused(
            f"catalogue {source} gives no sha256 for {target.path}", hint="ask who keeps it"
        ) from None


def _seen(state: Path, source: str) -> tuple[Mapping[str, int], float]:
    """Versions of what was just verified, and when the first of it expires."""
    with explained(source):
        signed: dict[str, Signed] = {
            role: Metadata.from_bytes((state / f"{role}.json").read_bytes()).signed
            for role in ROLES
        }
    versions = {role: part.version for role, part in signed.items()}
    return versions, min(part.expires.timestamp() for part in signed.values())


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
