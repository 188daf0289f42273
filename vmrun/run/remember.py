"""What is worth remembering of an image: in the journal for good, in its record for people."""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vmrun.image.records import ImageRecords
from vmrun.journal.journal import Journal
from vmrun.model.digest import Digest
from vmrun.model.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, StateError
from vmrun.model.image import Image, Reference, Transport
from vmrun.model.record import Checkup, ImageRecord, PushedBy, SeenAs
from vmrun.model.report import Report
from vmrun.model.scan import BillOfHealth
from vmrun.model.trust import Trust
from vmrun.run.directories import StateDirectories

if TYPE_CHECKING:
    from vmrun.image.registry.push import Pushed

_Change = Callable[[ImageRecord], ImageRecord]


class Memory:
    """This user's records and journal.

    The journal comes first, and what it cannot take down is a :class:`StateError`. A record that
    cannot be written is told to ``note``, or is a :class:`StateError`, too, without one.
    """

    def __init__(
        self, directories: StateDirectories, *, note: Callable[[str], None] | None = None
    ) -> None:
        self._records = ImageRecords(directories.images)
        self._journal = Journal(directories.journal)
        self._note = note
        self._started: set[str] = set()

    def pulled(self, image: Image) -> None:
        """An image is in the local store now."""
        self._journal.append("image.pull", _named(image.reference, image.digest))
        self._change(image.digest, image.reference, lambda record: _kept(record, image))

    def pushed(self, image: Image, pushed: Pushed) -> None:
        """An image was pushed from here."""
        fields = {"reference": pushed.reference, "digest": str(image.digest)}
        self._journal.append("image.push", {**fields, "account": pushed.account})
        by = PushedBy(_user(), pushed.account, pushed.reference, time.time())
        self._change(
            image.digest,
            pushed.reference,
            lambda record: replace(_kept(record, image), pushed=by),
        )

    def signed(self, identity: str, digests: Sequence[Digest], key_id: str) -> None:
        """An image was signed from here."""
        fields = {"identity": identity, "key": key_id}
        self._journal.append("image.sign", {**fields, "digest": str(digests[-1])})

    def verified(self, reference: Reference, digest: Digest, trust: Trust) -> None:
        """An image satisfied the policies."""
        self._journal.append("image.verify", {**_named(reference, digest), **_trust(trust)})
        now = time.time()
        self._change(
            digest,
            reference,
            lambda record: replace(record, claims=trust.claims, verified_at=now),
        )

    def scanned(self, reference: Reference, health: BillOfHealth) -> None:
        """An image was scanned and judged."""
        fields = {**_named(reference, health.scan.digest), "verdict": health.verdict.value}
        self._journal.append("image.scan", {**fields, "reasons": "; ".join(health.reasons)})
        counts: dict[str, int] = {}
        for finding in health.scan.findings:
            counts[finding.severity.word] = counts.get(finding.severity.word, 0) + 1
        checkup = Checkup(health.verdict, health.judged_at, counts)
        self._change(health.scan.digest, reference, lambda record: replace(record, checkup=checkup))

    def removes(self, record: ImageRecord, *, running: Sequence[str]) -> None:
        """An image is about to be forgotten and deleted here, whatever of it is ``running``."""
        reference = record.seen[0].reference if record.seen else ""
        fields = {"reference": reference, "digest": str(record.digest)}
        self._journal.append("image.rm", {**fields, "running": " ".join(running)})

    def forgets(self, name: str) -> None:
        """A name is about to leave the ledger: an older image of it is accepted again."""
        self._journal.append("policy.forget", {"identity": name})

    def starts(self, run_id: str, image: Image, trust: Trust, fields: dict[str, str]) -> None:
        """A guest is about to be created for an image; :class:`StateError` when it must not be,
        because the journal cannot be written. What cannot be remembered beyond that stops no run.
        """
        known = {"run": run_id, **_named(image.reference, image.digest), **_trust(trust)}
        self._journal.append("run.start", {**known, **fields})
        self._started.add(run_id)
        now = time.time()

        def change(record: ImageRecord) -> ImageRecord:
            if trust.claims:
                record = replace(record, claims=trust.claims, verified_at=now)
            return replace(
                _kept(record, image), runs=record.runs + 1, last_run=run_id, last_run_at=now
            )

        try:
            self._change(image.digest, image.reference, change)
        except StateError:
            # Nobody asked to be told; the journal has it.
            return

    def ended(self, report: Report) -> None:
        """A run is over, and what it had is removed: ``run.end`` for one that the journal has as
        started, else ``run.refused``: it ended before it had a guest, for whatever reason."""
        started = report.run_id in self._started
        self._journal.append(
            "run.end" if started else "run.refused",
            {
                "run": report.run_id,
                "tenant": report.tenant,
                "reference": report.image,
                "digest": report.image_digest,
                "status": str(report.exit_status),
                "error": _without_secrets(report, started=started),
                "clean": str(report.receipt.clean).lower(),
            },
        )

    def _change(self, digest: Digest, seen: Reference | str, change: _Change) -> None:
        met = SeenAs(str(seen), time.time())
        try:
            self._records.change(
                digest, lambda record: change(replace(record, seen=(met, *record.seen)))
            )
        except StateError as error:
            if self._note is None:
                raise
            self._note(f"{met.reference} is not remembered: {error.message}")


def _without_secrets(report: Report, *, started: bool) -> str:
    """The error, but for what may be of the workload's command or environment: a command that
    cannot be run is named with its PATH, and runtimes in a guest say what they were to start."""
    if report.error and report.exit_status in (EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND):
        return "the command cannot be run"
    return report.error.partition(":")[0] if started else report.error


def _kept(record: ImageRecord, image: Image) -> ImageRecord:
    """What is known of all blobs together. Only those of registries are in the local store."""
    blobs = (image.manifest, image.config_blob, *(layer.blob for layer in image.layers))
    stored = image.digests.all if image.reference.transport is Transport.DOCKER else record.blobs
    return replace(record, size=sum(blob.size for blob in blobs), blobs=stored)


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
