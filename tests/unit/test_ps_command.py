"""``vmrun ps``: what is listed is what lives, whatever records say; people's words and filters."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import World, a_record, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.cli.run_words import duration_words, port_words, printable, status_words
from vmrun.model.network import Publish
from vmrun.model.run_record import Health, RunRecord, RunState
from vmrun.run.survey import Seen

ENDED = "eeeeeeeeeeee"


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


def names(vmrun: Vmrun, *words: str) -> list[str]:
    return [run["name"] for run in json.loads(vmrun("ps", "--json", *words).out)]


def test_what_lives_is_listed_and_with_all_the_rest(world: World, vmrun: Vmrun) -> None:
    web = world.live("web", health=Health.HEALTHY)
    world.ended(ENDED, "job", exit_status=3)
    done = vmrun("ps")
    header, line = done.out.splitlines()
    assert header.split() == [
        "RUN", "ID", "NAME", "IMAGE", "COMMAND", "STATUS", "PORTS", "TENANT", "ACCELERATOR",
    ]  # fmt: skip
    assert line.split("  ")[0] == web.run_id
    for text in ('"server"', "Up 5 minutes (healthy)", "registry.example.com/app:1", "kvm"):
        assert text in line
    assert "Exited (3) 2 hours ago" in vmrun("ps", "-a").out
    assert vmrun("ps", "-q").out == f"{web.run_id}\n"
    assert vmrun("ps", "-aq").out.split() == [web.run_id, ENDED]


def test_a_record_that_says_it_runs_is_not_believed(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    paused = world.live("paused", state=RunState.PAUSED)
    world.lose(web)
    world.lose(paused)
    assert names(vmrun) == []
    for run in json.loads(vmrun("ps", "-a", "--json").out):
        assert (run["state"], run["exit_status"], run["owner"]) == ("dead", 137, 0)
    assert "Dead (137)" in vmrun("ps", "-a").out
    assert names(vmrun, "--filter", "status=dead") != []
    assert names(vmrun, "--filter", "status=running") == []


def test_one_that_has_still_to_say_its_last_word_is_not_dead(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    world.owned.pop(web.guest).release()
    world.runs.hold(web.run_id)
    assert names(vmrun) == ["web"]


def test_a_kept_guest_is_told_apart(world: World, vmrun: Vmrun) -> None:
    kept = world.live("kept", detached=False)
    world.owned[kept.guest].keep(3600)
    world.lose(kept)
    assert "Kept for 59 minutes" in vmrun("ps").out


def test_filters(world: World, vmrun: Vmrun) -> None:
    world.live("web-1", labels=(("tier", "front"), ("x", "1")), health=Health.HEALTHY)
    world.live("web-2", labels=(("tier", "back"),), tenant="acme", state=RunState.PAUSED)
    world.ended(ENDED, "web-3", labels=(("tier", "front"),))
    assert names(vmrun, "--filter", "name=web") == ["web-2", "web-1"]
    assert names(vmrun, "--filter", "label=tier=front") == ["web-1"]
    assert names(vmrun, "-a", "--filter", "label=tier=front") == ["web-1", "web-3"]
    assert names(vmrun, "--filter", "label=tier", "--filter", "label=x") == ["web-1"]
    assert names(vmrun, "--tenant", "acme") == ["web-2"]
    assert names(vmrun, "--filter", "tenant=acme", "--filter", "status=running") == []
    assert names(vmrun, "--filter", "status=exited", "--filter", "status=paused") == [
        "web-2",
        "web-3",
    ]
    assert names(vmrun, "--filter", "health=healthy") == ["web-1"]


@pytest.mark.parametrize("text", ["name", "=", "colour=red", "status=sleeping", "health=fine"])
def test_a_filter_that_is_none_is_wrong_usage(world: World, vmrun: Vmrun, text: str) -> None:
    done = vmrun("ps", "--filter", text)
    assert done.status == 2
    assert "--filter" in done.err


def test_a_damaged_record_is_told_and_hides_no_other(world: World, vmrun: Vmrun) -> None:
    world.live("web")
    world.ended(ENDED, "job")
    (world.runs.folder(ENDED) / "record.json").write_text("{")
    done = vmrun("ps", "-a")
    assert done.status == 0
    assert "web" in done.out
    assert "is damaged" in done.err
    assert f"vmrun rm {ENDED}" in done.err


def test_without_any_run(world: World, vmrun: Vmrun) -> None:
    assert len(vmrun("ps", "-a").out.splitlines()) == 1
    assert vmrun("ps", "--json").out == "[]\n"


def test_what_an_image_says_reaches_no_terminal(world: World, vmrun: Vmrun) -> None:
    world.live("web", command="\x1b[2Jevil\n", image="x\x07y")
    out = vmrun("ps", "--no-trunc").out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert len(out.splitlines()) == 2


def test_long_things_are_shortened_unless_asked(world: World, vmrun: Vmrun) -> None:
    world.live(
        "web", command="/usr/local/bin/a-very-long-command", image="r.example.com/" + "a" * 90
    )
    assert "a-very-long-command" not in vmrun("ps").out
    out = vmrun("ps", "--no-trunc").out
    assert "/usr/local/bin/a-very-long-command" in out
    assert "a" * 90 in out


def test_fifty_guests_take_no_time(world: World, vmrun: Vmrun) -> None:
    for number in range(50):
        world.live(f"run-{number}")
    start = time.process_time()
    assert len(vmrun("ps", "-q").out.split()) == 50
    assert time.process_time() - start < 1.0


def test_a_state_directory_that_cannot_be_read_is_an_error(
    world: World, vmrun: Vmrun, tmp_path: Path
) -> None:
    world.directories.runs.parent.mkdir(parents=True, exist_ok=True)
    world.directories.runs.write_text("not a directory")
    done = vmrun("ps")
    assert done.status == 1
    assert "cannot read" in done.err


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "Less than a second"), (0.9, "Less than a second"), (1, "1 second"),
        (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"), (120, "2 minutes"),
        (3599, "59 minutes"), (3600, "About an hour"), (7200, "2 hours"), (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"), (14 * 86400, "2 weeks"), (60 * 86400, "2 months"),
        (900 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


def status(record: RunRecord, state: RunState | None = None) -> str:
    return status_words(Seen(record, state or record.state, 1), record.created + 301)


def test_statuses() -> None:
    record = a_record(ENDED, "x")
    assert status(record) == "Up 5 minutes"
    assert status(replace(record, health=Health.STARTING)) == "Up 5 minutes (health: starting)"
    assert status(replace(record, state=RunState.PAUSED)) == "Up 5 minutes (Paused)"
    assert status(replace(record, state=RunState.CREATED)) == "Created"
    restarting = replace(record, state=RunState.RESTARTING, exit_status=3)
    assert status(restarting) == "Restarting (3)"


def test_ports() -> None:
    ports = (Publish("127.0.0.1", 8080, 80), Publish("::1", 53, 53))
    assert port_words(ports) == "127.0.0.1:8080->80/tcp, [::1]:53->53/tcp"


def test_printable() -> None:
    assert printable("ünïcode text") == "ünïcode text"
    assert printable("a\x1b[31m\u202e") == '"a\\u001b[31m\\u202e"'
