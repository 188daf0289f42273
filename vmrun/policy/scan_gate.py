"""The scan gate: is an image healthy enough to run? A scan, a gate and a time give a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vmrun.model.scan import BillOfHealth, Excused, Finding, Scan, Severity, Verdict
from vmrun.policy.trust_rules import ScanException, ScanGate

_SHOWN = 5
_SKEW = 3600.0
"""How far another host's clock may be ahead, in seconds."""


@dataclass(frozen=True, slots=True)
class VexStatement:
    """OpenVEX: a vulnerability, by all its ``names``, does not affect ``product`` because of
    ``reason``. ``product`` has package URLs or image digests that all mean the same;
    ``component``, unless it is empty, the one part of the product that is spoken of."""

    names: tuple[str, ...]
    product: tuple[str, ...]
    reason: str
    component: tuple[str, ...] = ()


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
    if scan.uncovered or not scan.databases:
        reasons = [*scan.uncovered, *reasons] or ["it was compared with no database"]
        verdict = Verdict.NOT_SCANNED
    elif failing:
        verdict = Verdict.FAIL
    else:
        reasons = _stale(scan, gate, now)
        verdict = Verdict.STALE if reasons else Verdict.PASS
    if failing:
        reasons.append(_summary(failing, gate))
    said = tuple(_printable(reason) for reason in reasons)
    return BillOfHealth(scan, verdict, said, tuple(failing), tuple(excused), now)


def _printable(text: str) -> str:
    """Reasons end up in terminals, and name what advisories and scanners say."""
    return "".join(c if c.isprintable() else " " for c in text)


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
    """Whether the statement is about this package in this image. Its product is the image, whole
    or as far as ``component`` says, or else the package wherever it is installed."""
    if statement.component:
        return _is_image(statement.product, scan) and _is_package(statement.component, finding)
    return _is_image(statement.product, scan) or _is_package(statement.product, finding)


def _is_image(names: Sequence[str], scan: Scan) -> bool:
    """``sha256:…``, or an OCI package URL with that version (purl-spec, "oci")."""
    return any(
        name == str(scan.digest)
        or (
            name.startswith("pkg:oci/")
            and _plain(name.partition("?")[0].rpartition("@")[2]) == str(scan.digest)
        )
        for name in names
    )


def _plain(version: str) -> str:
    """The only character of a digest that package URLs may escape, as it is."""
    return version.replace("%3A", ":").replace("%3a", ":")


def _is_package(names: Sequence[str], finding: Finding) -> bool:
    purl = finding.package.purl
    bare = purl.partition("?")[0]
    return bool({purl, bare, bare.partition("@")[0]} & set(names))


def _stale(scan: Scan, gate: ScanGate, now: float) -> list[str]:
    reasons = []
    if now - scan.scanned_at > gate.max_scan_age:
        reasons.append(f"scanned {_date(scan.scanned_at)}, longer ago than the gate allows")
    if scan.scanned_at > now + _SKEW:
        reasons.append(f"scanned {_date(scan.scanned_at)}, which is in the future")
    for database in scan.databases:
        if database.dated is None:
            reasons.append(f"{database.name} does not say how recent it is")
        elif database.dated > now + _SKEW:
            reasons.append(f"{database.name} is of {_date(database.dated)}, which is in the future")
        elif now - database.dated > gate.max_db_age:
            reasons.append(f"{database.name} is of {_date(database.dated)}, too old for the gate")
    return reasons


def _summary(failing: Sequence[Finding], gate: ScanGate) -> str:
    shown = ", ".join(f"{f.id} in {f.package.name} {f.package.version}" for f in failing[:_SHOWN])
    more = f" and {len(failing) - _SHOWN} more" if len(failing) > _SHOWN else ""
    limit = gate.max_severity.word if gate.max_severity is not Severity.NONE else "nothing"
    return f"{len(failing)} findings above {limit}: {shown}{more}"


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):  # beyond the calendar
        return f"{seconds:.0f} s after 1970"
