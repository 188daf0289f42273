"""``vmrun image scan``: fetch, scan, judge, remember, and sign the result if asked to."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vmrun.model.errors import UsageError
from vmrun.model.image import Image, Reference
from vmrun.model.scan import BillOfHealth, Scan
from vmrun.policy.scan_gate import judge
from vmrun.policy.trust_rules import ScanGate
from vmrun.run.directories import StateDirectories
from vmrun.run.health import vex_of
from vmrun.run.images import ImageOptions, absolute, artifacts, find_briefly
from vmrun.run.remember import Memory
from vmrun.run.signing import attachable, signed_name
from vmrun.scan.bill import vulnerability_predicate
from vmrun.scan.catalogue.read import catalogue
from vmrun.scan.cyclonedx import cyclonedx
from vmrun.scan.external import external_scan
from vmrun.scan.scan import SCANNER, Sources, scan_image
from vmrun.trust.attestations import CYCLONEDX, VULNERABILITIES, attest
from vmrun.trust.keys import PrivateKey


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """How to scan: ``scanner`` is vmrun, grype or trivy; ``key`` signs the result."""

    gate: ScanGate
    scanner: str = "vmrun"
    debian_suite: bool = True
    key: PrivateKey | None = None


def scan(
    reference: Reference, request: ScanRequest, directories: StateDirectories, options: ImageOptions
) -> BillOfHealth:
    """The bill of health of an image, by its digest, on bytes that were hashed."""
    reference = absolute(reference)
    with find_briefly(reference, directories, options) as found:
        image = found.fetch()
        made = _scan(image, request, directories, options)
        bill = judge(made, request.gate, vex_of(request.gate), now=time.time())
        if request.key is not None:
            _attest(reference, image, made, request.key, options)
    Memory(directories).scanned(reference, bill)
    return bill


def _scan(
    image: Image, request: ScanRequest, directories: StateDirectories, options: ImageOptions
) -> Scan:
    if not SCANNER.startswith(request.scanner):
        return external_scan(request.scanner, image, now=time.time())
    sources = Sources(
        options.advisories,
        directories.cache / "advisories",
        debian_suite=request.debian_suite,
        max_age=min(request.gate.max_db_age, 24 * 3600.0),
    )
    return scan_image(image, sources, directories.scans, now=time.time())


def _attest(
    reference: Reference, image: Image, made: Scan, key: PrivateKey, options: ImageOptions
) -> None:
    """Sign what was found, and what it was found in, and store both beside the image."""
    store = artifacts(reference, options, push=True)
    if store is None:
        raise UsageError(
            f"{reference.transport}: keeps no attestations",
            hint="push the image to a registry, or copy it into an OCI layout",
        )
    try:
        name = signed_name(reference, None)
    except UsageError:
        name = ""  # an attestation is about the digest; a name is not needed
    manifest = attachable(store, (image.digest,))[0]
    for kind, predicate in (
        (VULNERABILITIES, vulnerability_predicate(made)),
        (CYCLONEDX, cyclonedx(catalogue(image), image, created=made.scanned_at)),
    ):
        attest(store, manifest, name, kind, predicate, key, now=time.time())
