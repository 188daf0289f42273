"""Advisories as the index keeps them: what was parsed strictly once is not parsed so again, which
would take most of the time of a scan."""

from __future__ import annotations

import json
from collections.abc import Iterable

from vmrun.model.scan import Severity
from vmrun.scan.osv import Advisory, Affected, Event


def stored_advisory(advisory: Advisory) -> str:
    """What an advisory says of itself, without what it is about."""
    return json.dumps(
        [
            advisory.id,
            advisory.aliases,
            advisory.summary,
            advisory.severity.value,
            advisory.score,
            advisory.modified,
        ]
    )


def stored_about(affected: Iterable[Affected]) -> list[tuple[str, str]]:
    """For each package that is named, what is said of it."""
    by_name: dict[str, list[object]] = {}
    for item in affected:
        ranges = [[[event.kind, event.version] for event in events] for events in item.ranges]
        by_name.setdefault(item.name, []).append([ranges, item.versions, item.commits])
    return [(name, json.dumps(items)) for name, items in sorted(by_name.items())]


def unstored(data: str, about: str, *, ecosystem: str, name: str) -> Advisory:
    """The advisory again, about that package alone. Raises :class:`ValueError` and
    :class:`TypeError` for what was not stored by this module."""
    identifier, aliases, summary, severity, score, modified = json.loads(data)
    return Advisory(
        id=identifier,
        aliases=tuple(aliases),
        summary=summary,
        severity=Severity(severity),
        score=score,
        modified=modified,
        affected=tuple(
            Affected(
                ecosystem=ecosystem,
                name=name,
                ranges=tuple(tuple(Event(*event) for event in events) for events in ranges),
                versions=tuple(versions),
                commits=commits,
            )
            for ranges, versions, commits in json.loads(about)
        ),
    )
