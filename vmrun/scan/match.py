"""Which advisories are about which installed packages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vmrun.model.scan import Catalogue, Distribution, Finding, Package, PackageKind, Severity
from vmrun.scan.database import OsvDatabase, covers
from vmrun.scan.osv import matches

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


def match(packages: Iterable[Package], database: OsvDatabase, name: str) -> list[Finding]:
    """The findings of one ecosystem's database (``name``) among its packages."""
    findings = []
    for package in packages:
        for advisory in database.advisories(package.source):
            hits = [
                found
                for affected in advisory.affected
                if affected.name == package.source and covers(affected.ecosystem, name)
                if (found := matches(replace(affected, ecosystem=name), package.source_version))
            ]
            if hits:
                findings.append(
                    Finding(
                        id=advisory.id,
                        aliases=advisory.aliases,
                        package=package,
                        fixed=next((hit.fixed for hit in hits if hit.fixed), ""),
                        severity=advisory.severity,
                        summary=advisory.summary,
                        source=database.description.name,
                        score=advisory.score,
                        certain=any(hit.certain for hit in hits),
                    )
                )
    return findings


def merged(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """One finding for each problem of a package: advisories that are aliases of each other are
    the same problem. The worst severity that is known counts."""
    groups: list[list[Finding]] = []
    names: list[set[str]] = []
    for finding in findings:
        mine = {finding.id, *finding.aliases}
        joined = [
            at
            for at, group in enumerate(groups)
            if group[0].package == finding.package and names[at] & mine
        ]
        group, known = [finding], mine
        for at in reversed(joined):
            group = groups.pop(at) + group
            known |= names.pop(at)
        groups.append(group)
        names.append(known)
    found = [_one(group, known) for group, known in zip(groups, names, strict=True)]
    return tuple(sorted(found, key=lambda f: (-f.severity, f.package, f.id)))


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
