"""One image scanned: its catalogue matched against every source that answers for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from vmrun.model.errors import ScanError
from vmrun.model.image import Image
from vmrun.model.scan import Catalogue, Database, Distribution, Finding, Scan
from vmrun.scan import debian_security
from vmrun.scan.catalogue.read import catalogue as read_catalogue
from vmrun.scan.database import open_database
from vmrun.scan.match import ecosystems, match, merged
from vmrun.scan.scans import load_scan, save_scan

SCANNER = f"vmrun {version('vmrun')}"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where advisories are: ``advisories`` is a folder of OSV databases, ``cache`` holds what is
    made of them. ``debian_suite``: ask apt for Debian's security suite, lists of which may be
    ``max_age`` seconds old."""

    advisories: Path
    cache: Path
    debian_suite: bool = True
    max_age: float = 24 * 3600.0


def scan_image(image: Image, sources: Sources, scans: Path, *, now: float) -> Scan:
    """Scan ``image``, or find the scan of it that was made with the same databases.

    A stored scan's time is moved to now: the same bytes against the same advisories give the same
    findings. Raises :class:`ScanError`, :class:`ImageError`, :class:`StateError`.
    """
    before = load_scan(scans, image.digest)
    current = _databases_now(before, sources) if before is not None else None
    if before is not None and current is not None:
        scan = replace(before, scanned_at=now, databases=current)
    else:
        scan = match_catalogue(read_catalogue(image), sources, now=now)
    save_scan(scans, scan)
    return scan


def match_catalogue(catalogue: Catalogue, sources: Sources, *, now: float) -> Scan:
    """Every finding, and what nobody answers for."""
    databases: list[Database] = []
    findings: list[Finding] = []
    uncovered = [f"not read: {what}" for what in catalogue.unreadable]
    suite = _suite(catalogue.distribution, ecosystems(catalogue), sources)
    if suite is not None:
        databases.append(suite.description)
        findings += suite.findings(catalogue.packages)
    answering = ecosystems(catalogue)
    for name, packages in answering.items():
        database = open_database(sources.advisories, name, sources.cache) if name else None
        if database is not None:
            databases.append(database.description)
            findings += match(packages, database)
        elif not (suite is not None and name.startswith("Debian:")):
            what = name or f"packages of {_distribution(catalogue)}"
            uncovered.append(f"no advisories for {what} ({len(packages)} packages)")
    return Scan(
        digest=catalogue.digest,
        scanned_at=now,
        scanner=SCANNER,
        distribution=catalogue.distribution,
        packages=len(catalogue.packages),
        databases=tuple(databases),
        findings=merged(findings),
        uncovered=tuple(uncovered),
        unseen=catalogue.unseen,
        ecosystems=tuple(name for name in answering if name),
    )


def _databases_now(scan: Scan, sources: Sources) -> tuple[Database, ...] | None:
    """The databases that a stored scan was made with, as they are now; None if any is another by
    now or there is one more, or if another vmrun made the scan, or if it had left something out."""
    if scan.scanner != SCANNER or scan.uncovered or (scan.packages and not scan.ecosystems):
        return None
    suite = _suite(scan.distribution, scan.ecosystems, sources)
    now = [suite.description] if suite is not None else []
    for name in scan.ecosystems:
        opened = open_database(sources.advisories, name, sources.cache)
        now += [opened.description] if opened is not None else []
    before = {(database.name, database.digest) for database in scan.databases}
    return tuple(now) if before == {(database.name, database.digest) for database in now} else None


def _suite(
    distribution: Distribution | None, answering: Iterable[str], sources: Sources
) -> debian_security.SecuritySuite | None:
    """The security suite, for an image of Debian that has packages of it. A host that apt gets
    nothing for can do without where a database of advisories answers for them."""
    debian = next((name for name in answering if name.startswith("Debian:")), None)
    if distribution is None or debian is None or not sources.debian_suite:
        return None
    if not debian_security.covers(distribution):
        return None
    try:
        return debian_security.security_suite(distribution, sources.cache, max_age=sources.max_age)
    except ScanError:
        if open_database(sources.advisories, debian, sources.cache) is None:
            raise
        return None


def _distribution(catalogue: Catalogue) -> str:
    distribution = catalogue.distribution
    return f"{distribution.id} {distribution.version_id}" if distribution else "no distribution"
