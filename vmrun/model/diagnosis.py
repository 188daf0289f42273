"""What ``vmrun doctor`` says of a host: one diagnosis a check, and a verdict over all.

Field names are the schema of ``vmrun doctor --json`` (docs/reference/doctor.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmrun.model.plan import Accelerator


class CheckState(StrEnum):
    """``fault``: no container can be run before it is remedied; ``advice``: one can."""

    OK = "ok"
    ADVICE = "advice"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One check. ``remedy`` is a command or what to do, and empty only when all is well."""

    id: str
    state: CheckState
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Diagnosis:
    """All is well."""
    return Diagnosis(check, CheckState.OK, found)


def advice(check: str, found: str, remedy: str) -> Diagnosis:
    """It could be better; containers can be run."""
    return Diagnosis(check, CheckState.ADVICE, found, remedy)


def fault(check: str, found: str, remedy: str) -> Diagnosis:
    """No container can be run as things are."""
    return Diagnosis(check, CheckState.FAULT, found, remedy)


@dataclass(frozen=True, slots=True)
class HostVerdict:
    """``usable``: containers can be run, if only emulated. ``accelerator`` is None while no
    guest has been tried, and ``isolated`` true only when a guest has booted with KVM."""

    usable: bool
    accelerator: Accelerator | None
    isolated: bool
    text: str


@dataclass(frozen=True, slots=True)
class Examination:
    """A whole answer of ``vmrun doctor``."""

    checks: tuple[Diagnosis, ...]
    verdict: HostVerdict
