"""``vmrun doctor``: what this host can do, and why."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.output import note, print_json
from vmrun.model.errors import VmrunError
from vmrun.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmrun.host.accelerator import Verdict
    from vmrun.host.checks.facts import State
    from vmrun.model.base import Base
    from vmrun.model.diagnosis import Examination
    from vmrun.run.directories import StateDirectories

_COLOURS = {"ok": "\x1b[32m", "advice": "\x1b[33m", "fault": "\x1b[31m"}
_OFF = "\x1b[0m"


def doctor_command(
    trial: Annotated[
        bool,
        typer.Option(
            "--trial/--no-trial", help="Boot a guest to try KVM, or recall what one said."
        ),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this host can do and why, and how to remedy it.

    Exits with 0 when vmrun can run containers here, if only emulated, and 1 when it cannot.
    """
    from vmrun.host.doctor import Places, examine
    from vmrun.model.quantity import parse_size

    settings = load_settings()
    directories = settings.directories
    examination = examine(
        Places(directories.guests, directories.cache, directories.bases),
        _state(directories),
        connect=settings.connect,
        memory=parse_size(settings.memory, option="memory"),
        flavour=settings.engine.flavour,
        try_kvm=_trial(directories) if trial else None,
    )
    if json:
        print_json(examination)
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for line in lines(examination, colour=colour):
            print(line)
    raise typer.Exit(0 if examination.verdict.usable else 1)


def lines(examination: Examination, *, colour: bool) -> Iterator[str]:
    """One line a check, its remedy indented below, the verdict last."""
    width = max(len(check.id) for check in examination.checks)
    indent = " " * (width + len("advice") + 4)
    for check in examination.checks:
        state = f"{check.state:<6}"
        if colour:
            state = f"{_COLOURS[check.state]}{state}{_OFF}"
        yield f"{state}  {check.id:<{width}}  {_printable(check.found)}"
        if check.remedy:
            yield f"{indent}→ {_printable(check.remedy)}"
    verdict = examination.verdict
    mark = "ok" if verdict.isolated else "advice" if verdict.usable else "fault"
    yield f"{_COLOURS[mark]}{verdict.text}{_OFF}" if colour else verdict.text


def _printable(text: str) -> str:
    """One line of it; some of it was said by QEMU and libvirt."""
    return "".join(char if char.isprintable() else " " for char in text)


def _state(directories: StateDirectories) -> State:
    """Reclaim what dead runs left, as every command does, then make a guest's directory and
    remove it again."""
    from vmrun.host.checks.facts import State
    from vmrun.host.doctor import free_space
    from vmrun.run.state import claim
    from vmrun.run.teardown import reclaim

    path, free = str(directories.guests.parent), free_space(directories.guests)
    try:
        receipts = reclaim(directories)
        directory = claim(directories, name=None, tenant="doctor", connect="embedded")
        directory.remove()
        directory.release()
        kept = tuple(_kept(directories))
    except VmrunError as error:
        return State(path, free, error.message, error.hint)
    except OSError as error:
        return State(
            path,
            free,
            f"cannot use {error.filename or path}: {error.strerror}",
            "set VMRUN_STATE_DIR to a directory that you own",
        )
    return State(
        path,
        free,
        reclaimed=tuple(run_id for run_id, receipt in receipts if receipt.clean),
        unreclaimed=tuple(run_id for run_id, receipt in receipts if not receipt.clean),
        kept=kept,
    )


def _kept(directories: StateDirectories) -> Iterator[str]:
    from vmrun.run.state import find

    for path in sorted(directories.guests.iterdir()):
        if not (path / "intent.json").is_file():
            continue
        try:
            _, intent = find(directories, path.name)
        except VmrunError:
            continue  # it has ended meanwhile
        if intent.kept_until > time.time():
            yield intent.name


def _trial(directories: StateDirectories) -> Callable[[Base], Verdict]:
    def try_kvm(base: Base) -> Verdict:
        # Imports libvirt, which may be what is missing here.
        from vmrun.run.accelerator import prove

        if sys.stderr.isatty():
            note("trying KVM: booting a guest …")
        return prove(base, directories)

    return try_kvm
