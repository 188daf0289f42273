"""What is worth remembering of an image: in its record for people, in the journal for good."""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from vmrun.image.records import ImageRecords
from vmrun.image.registry.push import Pushed
from vmrun.journal.journal import Journal
from vmrun.model.digest import Digest
from vmrun.model.image import Image, Reference
from vmrun.model.record import Checkup, ImageRecord, PushedBy, SeenAs
from vmrun.model.report import Report
from vmrun.model.scan import BillOfHealth
from vmrun.model.trust import Trust
from vmrun.run.state import StateDirectories


class Memory:
    """This user's records and journal."""

    def __init__(self, directories: StateDirectories) -> None:
        self._records = ImageRecords(directories.images)
        self._journal = Journal(directories.journal)

    def pulled(self, image: Image) -> None:
        """An image is in the local store now."""
        blobs = (*image.digests.all,)
        self._change(image.digest, image.reference, image=image, blobs=blobs)
        self._journal.append("image.pull", _named(image.reference, image.digest))

    def pushed(self, image: Image, pushed: Pushed) -> None:
        """An image was pushed from here."""
        by = PushedBy(_user(), pushed.account, pushed.reference, time.time())
        self._change(image.digest, pushed.reference, image=image, pushed=by)
        fields = {"reference": pushed.reference, "digest": str(image.digest)}
        self._journal.append("image.push", {**fields, "account": pushed.account})

    def signed(self, identity: str, digests: Sequence[Digest], key_id: str) -> None:
        """An image was signed from here."""
        fields = {"identity": identity, "key": key_id}
        self._journal.append("image.sign", {**fields, "digest": str(digests[-1])})

    def verified(self, reference: Reference, digest: Digest, trust: Trust) -> None:
        """An image satisfied the policies."""
        self._change(digest, reference, trust=trust)
        self._journal.append("image.verify", {**_named(reference, digest), **_trust(trust)})

    def scanned(self, reference: Reference, health: BillOfHealth) -> None:
        """An image was scanned and judged."""
        counts: dict[str, int] = {}
        for finding in health.scan.findings:
            counts[finding.severity.word] = counts.get(finding.severity.word, 0) + 1
        checkup = Checkup(health.verdict, health.judged_at, counts)
        self._change(health.scan.digest, reference, checkup=checkup)
        fields = {**_named(reference, health.scan.digest), "verdict": health.verdict.value}
        self._journal.append("image.scan", {**fields, "reasons": "; ".join(health.reasons)})

    def starts(self, run_id: str, image: Image, trust: Trust, fields: dict[str, str]) -> None:
        """A guest is about to be created for an image."""
        known = {"run": run_id, **_named(image.reference, image.digest), **_trust(trust)}
        self._journal.append("run.start", {**known, **fields})
        now = time.time()

        def change(record: ImageRecord) -> ImageRecord:
            return replace(
                record, runs=record.runs + 1, last_run=run_id, last_run_at=now, size=_size(image)
            )

        self._records.change(image.digest, change)

    def ended(self, report: Report) -> None:
        """A run is over, and what it had is removed; or it was refused before it had anything."""
        refused = not report.image_digest or report.accelerator == ""
        event = "run.refused" if refused and report.error else "run.end"
        self._journal.append(
            event,
            {
                "run": report.run_id,
                "reference": report.image,
                "digest": report.image_digest,
                "status": str(report.exit_status),
                "error": report.error,
                "clean": str(report.receipt.clean).lower(),
            },
        )

    def _change(
        self,
        digest: Digest,
        seen: Reference | str,
        *,
        image: Image | None = None,
        blobs: tuple[Digest, ...] = (),
        pushed: PushedBy | None = None,
        trust: Trust | None = None,
        checkup: Checkup | None = None,
    ) -> None:
        now = time.time()

        def change(record: ImageRecord) -> ImageRecord:
            record = replace(record, seen=(SeenAs(str(seen), now), *record.seen))
            if image is not None:
                record = replace(record, size=_size(image), blobs=blobs or record.blobs)
            if pushed is not None:
                record = replace(record, pushed=pushed)
            if trust is not None:
                record = replace(record, claims=trust.claims, verified_at=now)
            if checkup is not None:
                record = replace(record, checkup=checkup)
            return record

        self._records.change(digest, change)


def _size(image: Image) -> int:
    blobs = (image.manifest, image.config_blob, *(layer.blob for layer in image.layers))
    return sum(blob.size for blob in blobs)


def _named(reference: Reference, digest: Digest) -> dict[str, str]:
    return {"reference": str(reference), "digest": str(digest)}


def _trust(trust: Trust) -> dict[str, str]:
    return {
        "keys": " ".join(sorted({claim.key_id for claim in trust.claims})),
        "verified": str(not trust.insecure).lower(),
        "policies": " ".join(f"{name}@{digest}" for name, digest in trust.policies),
        "catalogue": trust.catalogue,
    }


def _user() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
