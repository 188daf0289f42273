"""Findings as SARIF 2.1.0 (OASIS), which code hosts show beside the source."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from vmrun.model.scan import BillOfHealth, Finding, Severity

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_SCORES = {
    Severity.NONE: "0.0",
    Severity.LOW: "2.0",
    Severity.MEDIUM: "5.0",
    Severity.HIGH: "8.0",
    Severity.CRITICAL: "9.5",
    Severity.UNKNOWN: "9.5",
}
"""``security-severity`` of findings without a score of their own."""


def sarif(bill: BillOfHealth, image: str) -> dict[str, Any]:
    """A SARIF log with one run: failing findings are errors, others notes, excused ones
    suppressed. An image that was not scanned says so as a result of its own."""
    failing = set(bill.failing)
    excused = {item.finding: item for item in bill.excused}
    results = []
    for finding in bill.scan.findings:
        result = _result(finding, image, "error" if finding in failing else "note")
        if finding in excused:
            result["suppressions"] = [
                {"kind": "external", "justification": excused[finding].reason}
            ]
        results.append(result)
    rules = {finding.id: finding for finding in bill.scan.findings}
    driver = {
        "name": "vmrun",
        "version": version("vmrun"),
        "rules": [_rule(finding) for finding in rules.values()],
    }
    notifications = [{"level": "error", "message": {"text": text}} for text in bill.reasons]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "results": results,
                "invocations": [
                    {
                        "executionSuccessful": not bill.scan.uncovered,
                        "toolExecutionNotifications": notifications,
                    }
                ],
                "properties": {"verdict": bill.verdict.value, "digest": str(bill.scan.digest)},
            }
        ],
    }


def _rule(finding: Finding) -> dict[str, Any]:
    score = _SCORES[finding.severity] if finding.score is None else f"{finding.score:.1f}"
    return {
        "id": finding.id,
        "shortDescription": {"text": finding.summary[:200] or finding.id},
        "help": {"text": f"{finding.id}: {finding.summary or 'no summary'}"},
        "properties": {
            "security-severity": score,
            "tags": list(dict.fromkeys(["security", "vulnerability", *finding.aliases])),
        },
    }


def _result(finding: Finding, image: str, level: str) -> dict[str, Any]:
    package = finding.package
    fixed = f"fixed in {finding.fixed}" if finding.fixed else "no fix is known"
    unsure = "" if finding.certain else " (versions cannot be compared)"
    text = f"{package.name} {package.version}: {finding.id}, {fixed}{unsure}"
    mark = hashlib.sha256(f"{finding.id}\0{package.purl}\0{package.path}".encode()).hexdigest()
    return {
        "ruleId": finding.id,
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(package.path.lstrip("/")) or "image"},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [{"fullyQualifiedName": f"{image}:{package.purl}"}],
            }
        ],
        "partialFingerprints": {"package/v1": mark},
    }
