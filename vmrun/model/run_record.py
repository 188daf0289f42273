"""What is known of one run while it lives and after it has ended: ``ps``, ``inspect``, ``wait``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from vmrun.model.network import Publish
from vmrun.model.report import Assertion, Phase, Receipt, Usage


class RunState(StrEnum):
    """docker's words for a container's state."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    DEAD = "dead"
    """Its supervisor or its guest is gone and nobody saw how it ended."""


ENDED = (RunState.EXITED, RunState.DEAD)


class Health(StrEnum):
    """docker's words for a health check's result."""

    NONE = "none"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run. ``guest`` is the run id of the guest that it lives in: its own, or a tenant's.

    Times are seconds since 1970, 0.0 for not yet. ``command`` is what the container executes,
    without its arguments: they may hold secrets. ``detached``: it outlives the command that started
    it, and so does this record; ``remove``: the record goes when it has ended.
    """

    run_id: str
    name: str
    tenant: str
    guest: str
    image: str
    image_digest: str
    command: str
    engine: str
    profile: str
    accelerator: str
    isolated: bool
    base: str
    state: RunState
    created: float
    health: Health = Health.NONE
    started: float = 0.0
    finished: float = 0.0
    exit_status: int | None = None
    error: str = ""
    hint: str = ""
    details: str = ""
    restarts: int = 0
    detached: bool = False
    remove: bool = False
    ports: tuple[Publish, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""
    warnings: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    usage: Usage = field(default_factory=Usage)
    receipt: Receipt | None = None
    delivered_bytes: int = 0
    log_problem: str = ""
    """Why its output cannot be written down at the moment; the workload waits meanwhile."""

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED

    def last_word(self, *, clean: bool) -> dict[str, str]:
        """What the journal says of its end (``run.end``); ``clean``: nothing of it remains. Of an
        error only what comes before a colon: what follows may be the workload's own words."""
        return {
            "run": self.run_id,
            "tenant": self.tenant,
            "reference": self.image,
            "digest": self.image_digest,
            "status": str(self.exit_status),
            "error": self.error.partition(":")[0],
            "clean": str(clean).lower(),
        }
