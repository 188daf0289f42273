"""``vmrun inspect`` and ``vmrun port``: a stable schema, and what is read live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runs import World, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.model.network import Publish
from vmrun.model.run_record import RunRecord
from vmrun.supervisor.protocol import Line

ENDED = "eeeeeeeeeeee"
PORTS = (Publish("127.0.0.1", 8080, 80), Publish("::1", 4443, 443))
ADDED = {"owner", "kept_until", "guest_directory", "log", "verdict", "live"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        yield made
        made.close()


@pytest.fixture
def vmrun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vmrun:
    return vmrun_command(monkeypatch, capfd)


def test_the_schema(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job", exit_status=3)
    (world.runs.folder(ENDED) / "verdict.json").write_text('{"trust": null}')
    (world.runs.folder(ENDED) / "log").write_text("12345")
    (run,) = json.loads(vmrun("inspect", "job").out)
    assert run.keys() == {*RunRecord.__dataclass_fields__, *ADDED}
    assert (run["state"], run["exit_status"], run["live"]) == ("exited", 3, None)
    assert run["verdict"] == {"trust": None}
    assert run["log"]["bytes"] == 5
    assert run["guest_directory"] == ""


def test_what_is_read_live(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")

    def stats(line: Line, _request: dict[str, Any]) -> None:
        line.send({"stats": {"memory": 7}})

    world.answers(web, stats=stats)
    (run,) = json.loads(vmrun("inspect", web.run_id).out)
    assert run["live"] == {"memory": 7, "error": ""}
    assert run["owner"] > 0
    assert run["guest_directory"].endswith(web.run_id)


def test_a_supervisor_that_does_not_answer_is_said(world: World, vmrun: Vmrun) -> None:
    world.live("web")
    done = vmrun("inspect", "web")
    assert done.status == 0
    assert "nobody answers" in json.loads(done.out)[0]["live"]["error"]


def test_a_dead_run_is_called_dead(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    world.lose(web)
    (run,) = json.loads(vmrun("inspect", "web").out)
    assert (run["state"], run["exit_status"], run["live"]) == ("dead", 137, None)


def test_several_and_one_that_is_not_there(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job")
    done = vmrun("inspect", "nobody", "job")
    assert done.status == 1
    assert [run["name"] for run in json.loads(done.out)] == ["job"]
    assert "no such run" in done.err


@pytest.mark.parametrize("verdict", ["", "[]", "nonsense", "[" * 100_000])
def test_a_damaged_verdict_is_an_error(world: World, vmrun: Vmrun, verdict: str) -> None:
    world.ended(ENDED, "job")
    (world.runs.folder(ENDED) / "verdict.json").write_text(verdict)
    done = vmrun("inspect", "job")
    assert done.status == 1
    assert "verdict.json" in done.err


def test_ports(world: World, vmrun: Vmrun) -> None:
    world.live("web", ports=PORTS)
    assert vmrun("port", "web").out == "80/tcp -> 127.0.0.1:8080\n443/tcp -> [::1]:4443\n"
    assert vmrun("port", "web", "443/tcp").out == "[::1]:4443\n"
    assert vmrun("port", "web", "80").out == "127.0.0.1:8080\n"
    assert json.loads(vmrun("port", "--json", "web", "80").out)[0]["host_port"] == 8080
    done = vmrun("port", "web", "81")
    assert done.status == 1
    assert "publishes no port 81" in done.err
    for wrong in ("http", "0", "65536", "80/udp", "99999"):
        assert vmrun("port", "web", wrong).status == 2
