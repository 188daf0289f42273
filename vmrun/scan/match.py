"""Which advisories are about which installed packages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vmrun.model.scan import Catalogue, Distribution, Finding, Package, PackageKind, Severity
from vmrun.scan.database import OsvDatabase
from vmrun.scan.osv import Advisory, matches

_RELEASES = {"debian": "Debian", "alpine": "Alpine", "ubuntu": "Ubuntu"}


def ecosystem(package: Package, distribution: Distribution | None) -> str:
    """The OSV ecosystem that answers for a package; empty when none is known to."""
    if package.kind is PackageKind.PYPI:
        return "PyPI"
    if package.kind is PackageKind.NPM:
        return "npm"
    if distribution is None or distribution.id not in _RELEASES or not distribution.version_id:
        return ""
    name = _RELEASES[distribution.id]
    if distribution.id == "alpine":
        return f"{name}:v{'.'.join(distribution.version_id.split('.')[:2])}"
    return f"{name}:{distribution.version_id}"


def ecosystems(catalogue: Catalogue) -> dict[str, list[Package]]:
    """Packages by the ecosystem that answers for them. What a package of the distribution has put
    there is the distribution's to answer for, under that package's name."""
    found: dict[str, list[Package]] = {}
    for package in catalogue.packages:
        if not package.managed:
            found.setdefault(ecosystem(package, catalogue.distribution), []).append(package)
    return found


def match(packages: Iterable[Package], database: OsvDatabase) -> list[Finding]:
    """The findings of one ecosystem's database among its packages."""
    by_source: dict[str, list[Package]] = {}
    for package in packages:
        by_source.setdefault(package.source, []).append(package)
    return [
        finding
        for source, ones in by_source.items()
        for advisory in database.advisories(source)
        for package in ones
        if (finding := _finding(advisory, package, database.description.name)) is not None
    ]


def _finding(advisory: Advisory, package: Package, database: str) -> Finding | None:
    hits = [
        found
        for affected in advisory.affected
        if (found := matches(affected, package.source_version)) is not None
    ]
    if not hits:
        return None
    return Finding(
        id=advisory.id,
        aliases=advisory.aliases,
        package=package,
        fixed=next((hit.fixed for hit in hits if hit.fixed), ""),
        severity=advisory.severity,
        summary=advisory.summary,
        source=database,
        score=advisory.score,
        certain=any(hit.certain for hit in hits),
    )


def merged(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """One finding for each problem of a package: advisories that are aliases of each other are
    the same problem. The worst severity that is known counts."""
    by_package: dict[Package, list[Finding]] = {}
    for finding in findings:
        by_package.setdefault(finding.package, []).append(finding)
    found = [one for group in by_package.values() for one in _problems(group)]
    return tuple(sorted(found, key=lambda f: (-f.severity, f.package, f.id)))


def _problems(findings: Sequence[Finding]) -> list[Finding]:
    groups: list[list[Finding]] = []
    names: list[set[str]] = []
    for finding in findings:
        mine = {finding.id, *finding.aliases}
        joined = [at for at, known in enumerate(names) if known & mine]
        group, known = [finding], mine
        for at in reversed(joined):
            group = groups.pop(at) + group
            known |= names.pop(at)
        groups.append(group)
        names.append(known)
    return [_one(group, known) for group, known in zip(groups, names, strict=True)]


def _one(group: list[Finding], names: set[str]) -> Finding:
    rated = [finding for finding in group if finding.severity is not Severity.UNKNOWN]
    worst = max(rated or group, key=lambda finding: finding.severity)
    return replace(
        worst,
        aliases=tuple(sorted(names - {worst.id})),
        fixed=next((finding.fixed for finding in group if finding.fixed), ""),
        certain=any(finding.certain for finding in group),
        source=", ".join(dict.fromkeys(finding.source for finding in group)),
    )
