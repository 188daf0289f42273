"""Requests on a guest's control socket that are none: answered with an error, never a traceback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.runs import short_directory
from vmrun.model.errors import VmrunError
from vmrun.supervisor.answers import Answers, Living
from vmrun.supervisor.client import ask
from vmrun.supervisor.protocol import Line
from vmrun.supervisor.server import Server


class _Nothing:
    """A run that must not be told anything."""

    plan = SimpleNamespace(
        workload=SimpleNamespace(service=SimpleNamespace(stop_timeout=10.0)),
        image=SimpleNamespace(config=SimpleNamespace(stop_signal="")),
    )

    def get(self, _run_id: object) -> _Nothing:
        return self

    @property
    def controls(self) -> Any:
        return SimpleNamespace(contained=SimpleNamespace(execute=self._told))

    def _told(self, *_arguments: object, **_named: object) -> None:
        raise AssertionError("told to execute something")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"told to {name}")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[object]]]:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with short_directory() as directory:
        server = Server(directory / "api", Answers(cast(Living, _Nothing())).table())
        yield directory / "api", failed
        server.close()


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "stop", "grace": "soon"},
        {"op": "stop", "grace": True},
        {"op": "stop", "grace": float("nan")},
        {"op": "stop", "grace": -1},
        {"op": "stop", "grace": [1]},
        {"op": "exec", "argv": []},
        {"op": "exec"},
        {"op": "exec", "argv": "sh"},
        {"op": "exec", "argv": ["sh", 1]},
        {"op": "exec", "argv": ["sh"], "user": [0]},
        {"op": "exec", "argv": ["sh"], "terminal": 3},
        {"op": "signal", "signal": "9"},
        {"op": "signal", "signal": True},
        {"op": "signal", "signal": 65},
        {"op": "run", "plan": {}, "record": 1},
        {"op": "run", "plan": None, "attach": "yes"},
        {"op": ["stop"]},
        {},
    ],
)
def test_what_is_no_request_is_an_error(
    api: tuple[Path, list[object]], request_: dict[str, Any]
) -> None:
    path, failed = api
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(path))
    line = Line(sock)
    with pytest.raises(VmrunError) as caught:
        ask(line, **request_) if "op" in request_ else ask(line, "")
    line.close()
    assert caught.value.message
    assert "ended before it answered" not in caught.value.message
    assert failed == []
