"""``vmrun image scan``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.key import PassphraseFile, load_private_key
from vmrun.cli.output import note, print_json, table
from vmrun.image.reference import parse_reference
from vmrun.model.errors import StateError, UsageError
from vmrun.model.scan import BillOfHealth, Severity, Verdict

if TYPE_CHECKING:
    from vmrun.policy.trust_rules import ScanGate
    from vmrun.settings import Settings


class Format(StrEnum):
    """How findings are printed."""

    TABLE = "table"
    JSON = "json"
    SARIF = "sarif"


class Scanner(StrEnum):
    """What looks for vulnerabilities."""

    VMRUN = "vmrun"
    GRYPE = "grype"
    TRIVY = "trivy"


_SEVERITIES = [severity.word for severity in Severity if severity is not Severity.UNKNOWN]


def scan_command(
    image: Annotated[str, typer.Argument(help="The image, by any transport.")],
    max_severity: Annotated[
        str | None,
        typer.Option(help=f"The highest that passes: {', '.join(_SEVERITIES)}."),
    ] = None,
    fixed_only: Annotated[
        bool, typer.Option("--fixed-only", help="Let findings pass for which there is no fix.")
    ] = False,
    max_scan_age: Annotated[
        str | None, typer.Option(help="How old a scan may be, e.g. 24h.")
    ] = None,
    max_db_age: Annotated[
        str | None, typer.Option(help="How old a database may be, e.g. 7d.")
    ] = None,
    openvex: Annotated[
        list[Path] | None, typer.Option(help="An OpenVEX document. May be repeated.")
    ] = None,
    scanner: Annotated[
        Scanner, typer.Option(help="vmrun itself, or a program that is installed.")
    ] = Scanner.VMRUN,
    no_debian_suite: Annotated[
        bool, typer.Option("--no-debian-suite", help="Do not ask apt for security updates.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="Sign the result with this private key, and store it by the image."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write there instead of stdout.")] = None,
    advisories: i.Advisories = None,
    trust_rules: i.TrustRules = None,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Look for known vulnerabilities in what an image contains, and give a verdict.

    Exits with 0 for PASS, and 1 for FAIL, NOT-SCANNED and STALE.
    """
    reference = parse_reference(image)
    settings = i.settings_with(
        advisories=advisories, trust_rules=trust_rules, cert_dir=cert_dir, authfile=authfile
    )

    from vmrun.run.scanning import ScanRequest, scan

    gate = _gate(
        settings,
        max_severity=max_severity,
        fixed_only=fixed_only,
        max_scan_age=max_scan_age,
        max_db_age=max_db_age,
        openvex=openvex or [],
    )
    request = ScanRequest(
        gate=gate,
        scanner=scanner.value,
        debian_suite=not no_debian_suite,
        key=load_private_key(key, passphrase_file) if key is not None else None,
    )
    options = i.image_options(settings, plain_http=plain_http)
    bill = scan(reference, request, settings.directories, options)
    _print(bill, image, Format.JSON if json else form, output)
    if bill.verdict is not Verdict.PASS:
        raise typer.Exit(1)


def _gate(
    settings: Settings,
    *,
    max_severity: str | None,
    fixed_only: bool,
    max_scan_age: str | None,
    max_db_age: str | None,
    openvex: list[Path],
) -> ScanGate:
    """The gate of the trust rules, or the default one, with what was typed in its place."""
    from dataclasses import replace

    from vmrun.model.quantity import parse_duration
    from vmrun.policy.trust_rules import ScanGate
    from vmrun.run.health import gate_of
    from vmrun.trust.files import load_layers

    gate = gate_of(load_layers(settings.trust_files)) or ScanGate()
    if max_severity is not None:
        if max_severity not in _SEVERITIES:
            raise UsageError(
                f"--max-severity {max_severity!r} is none", hint=f"one of {', '.join(_SEVERITIES)}"
            )
        gate = replace(gate, max_severity=Severity[max_severity.upper()])
    if fixed_only:
        gate = replace(gate, fixed_only=True)
    if max_scan_age is not None:
        age = parse_duration(max_scan_age, option="--max-scan-age")
        gate = replace(gate, max_scan_age=age)
    if max_db_age is not None:
        gate = replace(gate, max_db_age=parse_duration(max_db_age, option="--max-db-age"))
    more = tuple(str(path.absolute()) for path in openvex)
    return replace(gate, openvex=(*gate.openvex, *more))


def _print(bill: BillOfHealth, image: str, form: Format, output: Path | None) -> None:
    try:
        file = output.open("w", encoding="utf-8") if output is not None else sys.stdout
    except OSError as error:
        raise StateError(f"cannot write {output}: {error.strerror}") from None
    try:
        if form is Format.SARIF:
            from vmrun.scan.sarif import sarif

            print_json(sarif(bill, image), file)
        elif form is Format.JSON:
            print_json(bill, file)
        else:
            print(_table(bill), file=file)
    finally:
        if output is not None:
            file.close()
            note(f"{bill.verdict}; wrote {output}")


def _table(bill: BillOfHealth) -> str:
    failing, excused = set(bill.failing), {item.finding for item in bill.excused}
    rows = [
        (
            ("excused" if f in excused else "fails" if f in failing else "passes"),
            f.severity.word + ("" if f.score is None else f" {f.score:.1f}"),
            f.package.name,
            f.package.version + ("" if f.certain else " (?)"),
            f.fixed or "-",
            f.id,
            _cut(", ".join(f.aliases) or f.summary),
        )
        for f in bill.scan.findings
    ]
    header = ("gate", "severity", "package", "installed", "fixed in", "id", "also")
    lines = [table([tuple(map(_plain, r)) for r in rows], header=header), ""] if rows else []
    lines += [f"  {_plain(reason)}" for reason in bill.reasons]
    lines += [f"  not checked: {_plain(text)}" for text in bill.scan.unseen]
    databases = ", ".join(f"{d.name} ({d.advisories})" for d in bill.scan.databases) or "none"
    lines.append(f"{bill.scan.packages} packages, {len(rows)} findings; databases: {databases}")
    lines.append(f"{bill.verdict}  {bill.scan.digest}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """What advisories and scanners say, without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= 50 else text[:49] + "…"
