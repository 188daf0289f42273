"""A scan as JSON: in this host's store, and as the result in cosign's vulnerability predicate, so
that a bill of health made in CI can be judged again where the image runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from vmrun.image.document import Document
from vmrun.model.digest import Digest
from vmrun.model.scan import (
    Database,
    Distribution,
    Finding,
    Package,
    PackageKind,
    Scan,
    Severity,
)

FORMAT = 1
_MOST = 100_000
_URI = "urn:vmrun:scan"


def scan_as_json(scan: Scan) -> dict[str, Any]:
    """All of a scan, for :func:`scan_from_json`."""
    return {
        "format": FORMAT,
        "digest": str(scan.digest),
        "scanned_at": scan.scanned_at,
        "scanner": scan.scanner,
        "distribution": _distribution(scan.distribution),
        "packages": scan.packages,
        "databases": [
            {
                "name": database.name,
                "digest": str(database.digest),
                "dated": database.dated,
                "advisories": database.advisories,
            }
            for database in scan.databases
        ],
        "findings": [_finding(finding) for finding in scan.findings],
        "uncovered": list(scan.uncovered),
        "unseen": list(scan.unseen),
        "ecosystems": list(scan.ecosystems),
    }


def scan_from_json(document: Document) -> Scan:
    """Read a scan strictly. Raises :class:`ImageError`."""
    if document.integer("format") != FORMAT:
        raise document.wrong("format", str(FORMAT))
    distribution = document.nested("distribution") if "distribution" in document else None
    return Scan(
        digest=Digest.parse(document.text("digest")),
        scanned_at=document.real("scanned_at"),
        scanner=document.text("scanner"),
        distribution=Distribution(
            *(distribution.text(name) for name in ("id", "version_id", "codename", "name"))
        )
        if distribution
        else None,
        packages=document.integer("packages"),
        databases=tuple(
            Database(
                item.text("name"),
                Digest.parse(item.text("digest")),
                item.real("dated") if "dated" in item else None,
                item.integer("advisories"),
            )
            for item in document.objects("databases", _MOST)
        ),
        findings=tuple(_read_finding(item) for item in document.objects("findings", _MOST)),
        uncovered=document.texts("uncovered"),
        unseen=document.texts("unseen"),
        ecosystems=document.texts("ecosystems"),
    )


def vulnerability_predicate(scan: Scan) -> dict[str, Any]:
    """cosign's predicate ``https://cosign.sigstore.dev/attestation/vuln/v1`` for a scan."""
    time = datetime.fromtimestamp(int(scan.scanned_at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    names = ", ".join(database.name for database in scan.databases)
    return {
        "invocation": {"parameters": [], "uri": "", "event_id": "", "builder.id": ""},
        "scanner": {
            "uri": _URI,
            "version": scan.scanner,
            "db": {"uri": names, "version": ""},
            "result": scan_as_json(scan),
        },
        "metadata": {"scanStartedOn": time, "scanFinishedOn": time},
    }


def scan_of_predicate(predicate: Mapping[str, object], where: str) -> Scan:
    """The scan in a predicate that vmrun made. Raises :class:`ImageError` for others'."""
    return scan_from_json(Document(dict(predicate), where).nested("scanner").nested("result"))


def _distribution(distribution: Distribution | None) -> dict[str, str] | None:
    if distribution is None:
        return None
    return {
        "id": distribution.id,
        "version_id": distribution.version_id,
        "codename": distribution.codename,
        "name": distribution.name,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    package = finding.package
    return {
        "id": finding.id,
        "aliases": list(finding.aliases),
        "package": {
            "kind": package.kind.value,
            "name": package.name,
            "version": package.version,
            "source": package.source,
            "source_version": package.source_version,
            "architecture": package.architecture,
            "path": package.path,
            "layer": str(package.layer),
            "purl": package.purl,
        },
        "fixed": finding.fixed,
        "severity": finding.severity.word,
        "summary": finding.summary,
        "source": finding.source,
        "score": finding.score,
        "certain": finding.certain,
    }


def _read_finding(item: Document) -> Finding:
    package = item.nested("package")
    severity = item.text("severity").upper()
    if severity not in Severity.__members__:
        raise item.wrong("severity", "a severity")
    return Finding(
        id=item.text("id"),
        aliases=item.texts("aliases"),
        package=Package(
            kind=package.choice("kind", PackageKind),
            name=package.text("name"),
            version=package.text("version"),
            source=package.text("source"),
            source_version=package.text("source_version"),
            architecture=package.text("architecture"),
            path=package.text("path"),
            layer=Digest.parse(package.text("layer")),
            purl=package.text("purl"),
        ),
        fixed=item.text("fixed"),
        severity=Severity[severity],
        summary=item.text("summary"),
        source=item.text("source"),
        score=item.real("score") if "score" in item else None,
        certain=item.boolean("certain"),
    )
