"""What a run leaves behind: phases, assertions, usage and the teardown receipt."""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.model.scan import BillOfHealth
from vmrun.model.trust import Trust


@dataclass(frozen=True, slots=True)
class Phase:
    """A stage of the pipeline; both in seconds, ``start`` from the command's start."""

    name: str
    start: float
    duration: float


@dataclass(frozen=True, slots=True)
class Assertion:
    """One property read live. ``subject`` is qemu, container or guest."""

    subject: str
    name: str
    expected: str
    actual: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What the container used (its cgroup's own counters); None where it was not read."""

    memory_peak: int | None = None
    oom_kills: int | None = None
    pids_peak: int | None = None
    pids_refused: int | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing that was made and is proved to be gone (or is not: ``gone`` False)."""

    kind: str
    name: str
    gone: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """What teardown removed, each checked afterwards."""

    removed: tuple[Removed, ...]
    kept: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing remains."""
        return not self.kept and all(item.gone for item in self.removed)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of ``vmrun run``."""

    run_id: str
    name: str
    tenant: str
    image: str
    image_digest: str
    base: str
    engine: str
    profile: str
    accelerator: str
    isolated: bool
    emulation_allowed: bool
    exit_status: int
    error: str
    phases: tuple[Phase, ...]
    assertions: tuple[Assertion, ...]
    usage: Usage
    receipt: Receipt
    delivered_bytes: int = 0
    qemu_memory: int | None = None
    """PSS of the QEMU process in bytes when the workload had ended."""
    hint: str = ""
    details: str = ""
    warnings: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    """Digests from what the reference named to the manifest, each hashed."""
    trust: Trust | None = None
    """Why the image may run; None if the run ended before that was decided."""
    health: BillOfHealth | None = None
    """What its scan said; None where no gate requires one."""
