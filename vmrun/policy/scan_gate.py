"""The scan gate: is an image healthy enough to run? A scan, a gate and a time give a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vmrun.model.scan import BillOfHealth, Excused, Finding, Scan, Severity, Verdict
from vmrun.policy.trust_rules import ScanException, ScanGate

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class VexStatement:
    """OpenVEX: ``vulnerability`` (and what it is also called) does not affect ``products``.

    ``products`` are package URLs or image digests; empty means every product of the document.
    """

    names: tuple[str, ...]
    products: tuple[str, ...]
    reason: str


def judge(
    scan: Scan, gate: ScanGate, vex: Sequence[VexStatement] = (), *, now: float
) -> BillOfHealth:
    """The verdict on ``scan`` at ``now`` (seconds since 1970).

    What was not looked at makes it NOT-SCANNED, whatever else was found; findings above the gate
    make it FAIL; too old a scan or database STALE. Only what is none of these is PASS.
    """
    failing: list[Finding] = []
    excused: list[Excused] = []
    reasons: list[str] = []
    for finding in scan.findings:
        excuse = _excuse(finding, scan, gate.exceptions, vex, now)
        if isinstance(excuse, Excused):
            excused.append(excuse)
        elif _fails(finding, gate):
            failing.append(finding)
            if excuse:
                reasons.append(excuse)
    if scan.uncovered:
        reasons = [*scan.uncovered, *reasons]
        verdict = Verdict.NOT_SCANNED
    elif failing:
        verdict = Verdict.FAIL
    else:
        reasons = _stale(scan, gate, now)
        verdict = Verdict.STALE if reasons else Verdict.PASS
    if failing:
        reasons.append(_summary(failing, gate))
    return BillOfHealth(scan, verdict, tuple(reasons), tuple(failing), tuple(excused), now)


def _fails(finding: Finding, gate: ScanGate) -> bool:
    if gate.fixed_only and not finding.fixed:
        return False
    # An unknown severity may be the worst, and a version that cannot be compared may be affected.
    return finding.severity > gate.max_severity


def _excuse(
    finding: Finding,
    scan: Scan,
    exceptions: Sequence[ScanException],
    vex: Sequence[VexStatement],
    now: float,
) -> Excused | str:
    """Why the finding does not count; else what stood in an exception's way, or nothing."""
    names = {finding.id, *finding.aliases}
    expired = ""
    for exception in exceptions:
        if exception.id not in names:
            continue
        if exception.package not in ("", finding.package.name, finding.package.source):
            continue
        if now >= exception.expires:
            expired = f"the exception for {exception.id} expired {_date(exception.expires)}"
            continue
        return Excused(finding, exception.reason, exception.expires, "rules")
    for statement in vex:
        if names & set(statement.names) and _about(statement, finding, scan):
            return Excused(finding, statement.reason, None, "openvex")
    return expired


def _about(statement: VexStatement, finding: Finding, scan: Scan) -> bool:
    bare = finding.package.purl.partition("?")[0]
    return any(
        product == finding.package.purl
        or product == bare
        or product == bare.partition("@")[0]
        or str(scan.digest) in product
        for product in statement.products
    )


def _stale(scan: Scan, gate: ScanGate, now: float) -> list[str]:
    reasons = []
    if now - scan.scanned_at > gate.max_scan_age:
        reasons.append(f"scanned {_date(scan.scanned_at)}, longer ago than the gate allows")
    if scan.scanned_at > now + 3600:
        reasons.append(f"scanned {_date(scan.scanned_at)}, which is in the future")
    for database in scan.databases:
        if database.dated is None:
            reasons.append(f"{database.name} does not say how recent it is")
        elif now - database.dated > gate.max_db_age:
            reasons.append(f"{database.name} is of {_date(database.dated)}, too old for the gate")
    return reasons


def _summary(failing: Sequence[Finding], gate: ScanGate) -> str:
    shown = ", ".join(f"{f.id} in {f.package.name} {f.package.version}" for f in failing[:_SHOWN])
    more = f" and {len(failing) - _SHOWN} more" if len(failing) > _SHOWN else ""
    limit = gate.max_severity.word if gate.max_severity is not Severity.NONE else "nothing"
    return f"{len(failing)} findings above {limit}: {shown}{more}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
