"""Advisories in the OSV format (ossf.github.io/osv-schema), as far as matching needs it."""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.scan import Severity
from vmrun.scan.severity import severity_of_vector, severity_of_word
from vmrun.scan.versions import compare, parse_version

_LIMITS = ImageLimits(document=8 << 20, depth=64)
_MOST = 20_000
ZERO = "0"
"""In an event: before every version."""


@dataclass(frozen=True, slots=True)
class Event:
    """A turn in a range: ``kind`` is introduced, fixed, last_affected or limit."""

    kind: str
    version: str


@dataclass(frozen=True, slots=True)
class Affected:
    """Which versions of a package an advisory is about."""

    ecosystem: str
    name: str
    ranges: tuple[tuple[Event, ...], ...]
    versions: tuple[str, ...]
    commits: bool = False
    """Whether it also has ranges of commits, which say nothing of released versions."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """An advisory that is not withdrawn. ``modified`` is RFC 3339 text."""

    id: str
    aliases: tuple[str, ...]
    summary: str
    severity: Severity
    score: float | None
    modified: str
    affected: tuple[Affected, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """An advisory is about an installed version. ``certain`` is False where versions could not be
    compared; ``fixed`` is the first version after it that is not affected, if known."""

    fixed: str
    certain: bool


def parse_advisory(data: bytes, where: str) -> Advisory | None:
    """Read an advisory; None for one that was withdrawn. Raises :class:`ImageError`."""
    document = parse_object(data, where, _LIMITS)
    identifier = document.text("id")
    if not identifier:
        raise document.wrong("id", "a name")
    if "withdrawn" in document:
        return None
    severity, score = _severity(document)
    affected = document.objects("affected", _MOST) if "affected" in document else []
    upstream = document.texts("upstream")
    return Advisory(
        id=identifier,
        # One that bundles several problems is not the same as any of them.
        aliases=(*document.texts("aliases"), *(upstream if len(upstream) == 1 else ())),
        summary=(document.text("summary", "") or document.text("details", ""))[:500],
        severity=severity,
        score=score,
        modified=document.text("modified", ""),
        affected=tuple(_affected(item) for item in affected if "package" in item),
    )


def matches(affected: Affected, version: str) -> Match | None:
    """Whether ``version`` is affected, by the schema's evaluation algorithm. A version that
    cannot be compared may be, so it counts, as uncertain."""
    listed = _listed(affected, version)
    if listed:
        return Match(_fix_after(affected, version), certain=True)
    # About a package, but about none of its versions: nobody knows which.
    unsure = listed is None or not (affected.versions or affected.ranges or affected.commits)
    for events in affected.ranges:
        within = _within(events, version, affected.ecosystem)
        if within:
            return Match(_fix_after(affected, version), certain=True)
        unsure = unsure or within is None
    if unsure:
        return Match(_fix_after(affected, version), certain=False)
    return None


def _listed(affected: Affected, version: str) -> bool | None:
    """Whether the version is one of those listed, in any spelling of it; None when its spelling
    cannot be read, so that nobody can tell."""
    if version in affected.versions:
        return True
    if not affected.versions:
        return False
    if parse_version(affected.ecosystem, version) is None:
        return False if affected.ranges else None
    return any(compare(affected.ecosystem, version, one) == 0 for one in affected.versions)


def _within(events: tuple[Event, ...], version: str, ecosystem: str) -> bool | None:
    if not any(event.kind == "introduced" for event in events):
        return None  # the schema requires one
    limits = [event.version for event in events if event.kind == "limit" and event.version != "*"]
    if limits:
        below = [_before(version, limit, ecosystem) for limit in limits]
        if None in below:
            return None
        if not any(below):
            return False
    vulnerable = False
    for event in _sorted(events, ecosystem):
        if event.kind == "introduced":
            reached = event.version == ZERO or _not_before(version, event.version, ecosystem)
            if reached is None:
                return None
            vulnerable = vulnerable or reached
        elif event.kind == "fixed":
            reached = _not_before(version, event.version, ecosystem)
            if reached is None:
                return None
            vulnerable = vulnerable and not reached
        elif event.kind == "last_affected":
            beyond = _before(event.version, version, ecosystem)
            if beyond is None:
                return None
            vulnerable = vulnerable and not beyond
    return vulnerable


def _sorted(events: tuple[Event, ...], ecosystem: str) -> list[Event]:
    """In the order of their versions; what cannot be compared keeps its place."""
    ordered: list[Event] = []
    for event in events:
        at = len(ordered)
        while at and _precedes(event, ordered[at - 1], ecosystem):
            at -= 1
        ordered.insert(at, event)
    return ordered


def _precedes(one: Event, other: Event, ecosystem: str) -> bool:
    if one.version == ZERO:
        return other.version != ZERO
    if other.version == ZERO:
        return False
    return _before(one.version, other.version, ecosystem) is True


def _fix_after(affected: Affected, version: str) -> str:
    best = ""
    for events in affected.ranges:
        for event in events:
            if event.kind != "fixed":
                continue
            after = _before(version, event.version, affected.ecosystem) is not False
            if after and (not best or _before(event.version, best, affected.ecosystem)):
                best = event.version
    return best


def _before(one: str, other: str, ecosystem: str) -> bool | None:
    found = compare(ecosystem, one, other)
    return None if found is None else found < 0


def _not_before(one: str, other: str, ecosystem: str) -> bool | None:
    found = compare(ecosystem, one, other)
    return None if found is None else found >= 0


def _affected(item: Document) -> Affected:
    package = item.nested("package")
    ranges = item.objects("ranges", _MOST) if "ranges" in item else []
    return Affected(
        ecosystem=package.text("ecosystem"),
        name=package.text("name"),
        ranges=tuple(
            tuple(_event(event) for event in one.objects("events", _MOST))
            for one in ranges
            if one.text("type") != "GIT"  # commits, not versions
        ),
        versions=item.texts("versions"),
        commits=any(one.text("type") == "GIT" for one in ranges),
    )


def _event(item: Document) -> Event:
    for kind in ("introduced", "fixed", "last_affected", "limit"):
        if kind in item:
            return Event(kind, item.text(kind))
    raise item.wrong("events", "introduced, fixed, last_affected or limit")


def _severity(document: Document) -> tuple[Severity, float | None]:
    """The worst that the advisory says of itself, wherever it says it."""
    vectors = list(document.objects("severity", _MOST)) if "severity" in document else []
    words = [document.nested("database_specific").loose_text("severity")]
    for item in document.objects("affected", _MOST) if "affected" in document else []:
        vectors += item.objects("severity", _MOST) if "severity" in item else []
        words.append(item.nested("ecosystem_specific").loose_text("severity"))
        words.append(item.nested("ecosystem_specific").loose_text("urgency"))
        words.append(item.nested("database_specific").loose_text("severity"))
    scored = [severity_of_vector(item.text("score")) for item in vectors]
    known = [found for found in scored if found is not None]
    if known:
        return max(known, key=lambda pair: pair[1])
    named = [found for word in words if (found := severity_of_word(word)) is not None]
    return (max(named), None) if named else (Severity.UNKNOWN, None)
