"""How healthy an image is: a scan, made here or attested elsewhere, judged now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vmrun.model.errors import ImageError, Refused
from vmrun.model.image import Image, Reference
from vmrun.model.scan import BillOfHealth, Verdict
from vmrun.policy.scan_gate import VexStatement, judge
from vmrun.policy.signature_policy import Signed
from vmrun.policy.trust_rules import ScanGate, combine_gates
from vmrun.run.directories import StateDirectories
from vmrun.run.images import ImageOptions, artifacts
from vmrun.trust.attestations import VULNERABILITIES, attestations
from vmrun.trust.decision import unusable
from vmrun.trust.files import TrustLayer, load_key
from vmrun.trust.keys import PublicKey


def gate_of(layers: Sequence[TrustLayer]) -> ScanGate | None:
    """The gate that applies, None if nobody has set one."""
    return combine_gates(tuple(layer.rules.scan for layer in layers if layer.rules.scan))


def must_be_healthy(
    image: Image,
    layers: Sequence[TrustLayer],
    directories: StateDirectories,
    options: ImageOptions,
) -> BillOfHealth | None:
    """The image's bill of health if it passes the gate; None where no gate requires one.

    Raises :class:`Refused` for every verdict but PASS, and :class:`ScanError` when it cannot be
    scanned at all.
    """
    gate = gate_of(layers)
    if gate is None or not gate.required:
        return None
    # Loaded where a gate asks for it: what compares versions takes a while.
    from vmrun.scan.scan import Sources, scan_image

    bill = attested(image, layers, gate, options)
    if bill is None or bill.verdict is Verdict.STALE:
        cache = directories.cache / "advisories"
        sources = Sources(options.advisories, cache, max_age=gate.max_db_age)
        scan = scan_image(image, sources, directories.scans, now=time.time())
        bill = judge(scan, gate, vex_of(gate), now=time.time())
    if bill.verdict is not Verdict.PASS:
        raise Refused(
            f"{image.reference} ({image.digest}) is not healthy: {bill.verdict}",
            details="\n".join(bill.reasons[:8]),
            hint=f"see 'vmrun image scan {image.reference}' for all of it",
        )
    return bill


def attested(
    image: Image, layers: Sequence[TrustLayer], gate: ScanGate, options: ImageOptions
) -> BillOfHealth | None:
    """The newest scan of the image that a key of ``attested_by`` has signed, judged now."""
    # The registry is asked again only where somebody's word on the scan would count.
    keys = _keys(layers, gate)
    store = artifacts(image.reference, options) if keys else None
    if store is None:
        return None
    from vmrun.scan.bill import scan_of_predicate

    found, _ = attestations(store, image.digests.lineage, VULNERABILITIES, keys)
    scans = []
    for attestation in found:
        try:
            scan = scan_of_predicate(attestation.statement.predicate, "attested scan")
        except ImageError:
            continue  # another scanner's result, in a form of its own
        if scan.digest == image.digest:
            scans.append(scan)
    if not scans:
        return None
    newest = max(scans, key=lambda scan: scan.scanned_at)
    return judge(newest, gate, vex_of(gate), now=time.time())


def vex_of(gate: ScanGate) -> tuple[VexStatement, ...]:
    """The statements of every OpenVEX document that the gate names."""
    from vmrun.scan.openvex import read_openvex

    return tuple(statement for path in gate.openvex for statement in read_openvex(Path(path)))


def summary(reference: Reference, bill: BillOfHealth) -> str:
    """One line for people."""
    databases = ", ".join(database.name for database in bill.scan.databases) or "no database"
    return (
        f"scanned {reference}: {bill.verdict}, {bill.scan.packages} packages,"
        f" {len(bill.scan.findings)} findings ({databases})"
    )


def _keys(layers: Sequence[TrustLayer], gate: ScanGate) -> list[PublicKey]:
    """The keys of the policies that ``attested_by`` names and that count now."""
    found = {}
    for layer in layers:
        if layer.policy is None:
            continue
        scoped = [s for scopes in layer.policy.transports.values() for s in scopes.values()]
        for requirement in (r for group in (layer.policy.default, *scoped) for r in group):
            if isinstance(requirement, Signed):
                for source in requirement.keys:
                    key = load_key(source)
                    found[key.key_id] = key
    return [
        key
        for key_id, key in found.items()
        if key_id in gate.attested_by and not unusable(key, layers, time.time())
    ]
