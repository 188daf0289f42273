"""Other scanners, where a user names them: grype and trivy, on the layout that was hashed.

Their verdict is not taken over, only their findings: those meet the same gate. The database's date
is theirs; where they do not say, the scan is STALE for want of one.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ScanError
from vmrun.model.image import Image
from vmrun.model.scan import Database, Distribution, Finding, Package, PackageKind, Scan, Severity
from vmrun.scan.severity import severity_of_word

_TIMEOUT = 900.0
_LIMITS = ImageLimits(document=256 * MIB, depth=64)
_MOST = 100_000
_TINY = re.compile(r"(\.[0-9]{6})[0-9]+")
"""Fractions of a second that are smaller than Python has them."""
_KINDS = {
    "deb": PackageKind.DEB, "debian": PackageKind.DEB, "ubuntu": PackageKind.DEB,
    "apk": PackageKind.APK, "alpine": PackageKind.APK, "python": PackageKind.PYPI,
    "python-pkg": PackageKind.PYPI, "npm": PackageKind.NPM, "node-pkg": PackageKind.NPM,
}  # fmt: skip


def external_scan(program: str, image: Image, *, now: float) -> Scan:
    """Scan an image's layout with ``grype`` or ``trivy``. Raises :class:`ScanError`."""
    layout = image.layout.absolute()
    commands: dict[str, tuple[list[str], Callable[[Document, Image, float], Scan]]] = {
        "grype": (["grype", f"oci-dir:{layout}", "-o", "json", "-q"], _grype),
        "trivy": (
            ["trivy", "image", "--quiet", "--input", str(layout), "--format", "json",
             "--list-all-pkgs", "--scanners", "vuln"],
            _trivy,
        ),
    }  # fmt: skip
    command, read = commands[program]
    data = _run(command)
    try:
        return read(parse_object(data, f"answer of {program}", _LIMITS), image, now)
    except ImageError as error:
        raise ScanError(
            f"{error.message}", hint=f"is this {program} of a version we know?"
        ) from None


def _run(command: list[str]) -> bytes:
    """The program's stdout, bounded, from a file so that nothing can fill memory."""
    # In an empty folder: whoever owns the current one could put in a .trivyignore, .grype.yaml or
    # the like, and so leave out findings.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command,
                cwd=empty,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            raise ScanError(
                f"{command[0]} is not installed", hint="install it, or scan without --scanner"
            ) from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ScanError(f"{command[0]}: {error}") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise ScanError(
                f"{command[0]} failed with status {done.returncode}",
                details="".join(c if c.isprintable() or c == "\n" else " " for c in said),
            )
        if os.fstat(out.fileno()).st_size > _LIMITS.document:
            raise ScanError(f"{command[0]} printed more than {_LIMITS.document} bytes")
        out.seek(0)
        return out.read()


def _grype(document: Document, image: Image, now: float) -> Scan:
    descriptor = document.nested("descriptor")
    status = descriptor.nested("db").nested("status")
    built = status.loose_text("built") or descriptor.nested("db").loose_text("built")
    findings = []
    for item in document.objects("matches", _MOST):
        found, artifact = item.nested("vulnerability"), item.nested("artifact")
        fix = found.nested("fix").texts("versions") if "fix" in found else ()
        related = item.objects("relatedVulnerabilities", _MOST) if _has(item) else []
        findings.append(
            Finding(
                id=found.text("id"),
                aliases=tuple(r.text("id") for r in related if r.text("id") != found.text("id")),
                package=_package(image, artifact.text("type"), artifact.text("name"),
                                 artifact.text("version"), artifact.text("purl", "")),
                fixed=fix[0] if fix else "",
                severity=severity_of_word(found.loose_text("severity")) or Severity.UNKNOWN,
                summary=found.loose_text("description")[:500],
                source="grype",
            )
        )  # fmt: skip
    name = f"grype {descriptor.text('version', '')}".strip()
    distribution = document.nested("distro")
    return _scan(name, image, now, built, findings, distribution.loose_text("name"),
                 distribution.loose_text("version"), packages=0)  # fmt: skip


def _has(item: Document) -> bool:
    return "relatedVulnerabilities" in item


def _trivy(document: Document, image: Image, now: float) -> Scan:
    system = document.nested("Metadata").nested("OS")
    findings, packages = [], 0
    for result in document.objects("Results", _MOST) if "Results" in document else []:
        kind = result.text("Type", "")
        packages += len(result.objects("Packages", _MOST)) if "Packages" in result else 0
        for item in result.objects("Vulnerabilities", _MOST) if "Vulnerabilities" in result else []:
            identifier = item.nested("PkgIdentifier").loose_text("PURL")
            findings.append(
                Finding(
                    id=item.text("VulnerabilityID"),
                    aliases=(),
                    package=_package(image, kind, item.text("PkgName"),
                                     item.text("InstalledVersion"), identifier),
                    fixed=item.loose_text("FixedVersion").partition(",")[0].strip(),
                    severity=severity_of_word(item.loose_text("Severity")) or Severity.UNKNOWN,
                    summary=item.loose_text("Title")[:500],
                    source="trivy",
                )
            )  # fmt: skip
    # The report does not date the database; the program does.
    about = parse_object(_run(["trivy", "version", "--format", "json"]), "trivy's version", _LIMITS)
    built = about.nested("VulnerabilityDB").loose_text("UpdatedAt")
    name = f"trivy {about.loose_text('Version')}".strip()
    scan = _scan(name, image, now, built, findings, system.loose_text("Family"),
                 system.loose_text("Name"), packages=packages)  # fmt: skip
    # It says nothing of images that it does not understand.
    return scan if packages else replace(scan, uncovered=("trivy has found no packages",))


def _scan(
    name: str,
    image: Image,
    now: float,
    built: str,
    findings: list[Finding],
    system: str,
    release: str,
    *,
    packages: int,
) -> Scan:
    try:
        dated = datetime.fromisoformat(_TINY.sub(r"\1", built.replace("Z", "+00:00"))).timestamp()
    except (ValueError, OverflowError):
        dated = None
    return Scan(
        digest=image.digest,
        scanned_at=now,
        scanner=name,
        distribution=Distribution(system, release) if system else None,
        packages=packages,
        databases=(Database(name, Digest.of(built.encode()), dated),),
        findings=tuple(sorted(findings, key=lambda f: (-f.severity, f.package, f.id))),
    )


def _package(image: Image, kind: str, name: str, version: str, purl: str) -> Package:
    """What they found; a kind that vmrun has no word for is filed under deb, its purl tells."""
    known = _KINDS.get(kind.lower(), PackageKind.DEB)
    return Package(known, name, version, name, version, "", "", image.digest, purl)
