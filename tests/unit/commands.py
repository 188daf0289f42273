"""A vmrun command in this process, as its user would see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vmrun.cli.main import main


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


Vmrun = Callable[..., Done]


def vmrun_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vmrun:
    """``vmrun("ps", "-a")``."""

    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["vmrun", *words])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return call
