"""``vmrun events``: the journal's entries about runs, and those to come, each checked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import World, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.journal.entry import Entry
from vmrun.journal.follow import follow
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        journal = Journal(made.directories.journal)
        journal.append("image.pull", {"reference": "x"})
        journal.append("run.start", {"run": "eeeeeeeeeeee", "tenant": "acme"})
        journal.append("run.started", {"run": "eeeeeeeeeeee", "name": "web", "tenant": "acme"})
        journal.append("volume.create", {"name": "data", "tenant": "other"})
        journal.append("guest.reclaim", {"guest": "ffffffffffff"})
        yield made
        made.close()


@pytest.fixture
def vmrun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vmrun:
    return vmrun_command(monkeypatch, capfd)


def events(vmrun: Vmrun, *words: str) -> list[str]:
    done = vmrun("events", "--json", *words)
    assert done.status == 0, done.err
    return [json.loads(line)["event"] for line in done.out.splitlines()]


def test_what_concerns_runs_is_shown(world: World, vmrun: Vmrun) -> None:
    assert events(vmrun) == ["run.start", "run.started", "volume.create", "guest.reclaim"]
    line = vmrun("events").out.splitlines()[1]
    assert line.endswith(" run.started run=eeeeeeeeeeee name=web tenant=acme")


def test_filters(world: World, vmrun: Vmrun) -> None:
    assert events(vmrun, "--filter", "type=volume") == ["volume.create"]
    assert events(vmrun, "--filter", "event=run.start") == ["run.start"]
    assert events(vmrun, "--filter", "run=eeee") == ["run.start", "run.started"]
    assert events(vmrun, "--filter", "run=web") == ["run.started"]
    assert events(vmrun, "--filter", "tenant=other") == ["volume.create"]
    assert events(vmrun, "--filter", "type=run", "--filter", "tenant=other") == []
    assert len(events(vmrun, "--filter", "type=run", "--filter", "type=guest")) == 3
    for wrong in ("type=image", "colour=red", "run=", "run"):
        assert vmrun("events", "--filter", wrong).status == 2


def test_from_when_to_when(world: World, vmrun: Vmrun) -> None:
    assert len(events(vmrun, "--since", "1h")) == 4
    assert events(vmrun, "--until", "1h") == []
    assert events(vmrun, "--since", "2100-01-01T00:00:00Z") == []
    assert vmrun("events", "--since", "soon").status == 2


def test_a_changed_journal_is_an_error(world: World, vmrun: Vmrun) -> None:
    path = world.directories.journal / "journal.jsonl"
    path.write_text(path.read_text().replace("acme", "evil"))
    done = vmrun("events")
    assert done.status == 1
    assert "chain" in done.err


def test_values_stay_on_their_line(world: World, vmrun: Vmrun) -> None:
    Journal(world.directories.journal).append("run.end", {"run": "a", "error": "x\ny\x1b[2J z"})
    out = vmrun("events").out
    assert len(out.splitlines()) == 5
    assert "\x1b" not in out


# --- following -------------------------------------------------------------------------------


class Over(Exception):
    """Enough was seen."""


def followed(directory: Path, last: Entry | None, count: int) -> list[str]:
    """So many events, or what came within some seconds."""
    deadline = time.monotonic() + 10
    found: list[str] = []

    def pause() -> None:
        if time.monotonic() > deadline:
            raise Over
        time.sleep(0.002)

    try:
        for entry in follow(directory, last, pause):
            found.append(entry.event)
            if len(found) == count:
                break
    except Over:
        pass
    return found


def test_following_sees_what_comes_across_segments(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment=2000)
    last = journal.append("run.old", {})

    def write() -> None:
        for number in range(60):
            journal.append(f"run.{number}", {"x": "y" * 50})

    writer = threading.Thread(target=write)
    writer.start()
    wanted = [f"run.{number}" for number in range(60)]
    found: list[str] = []
    for entry in follow(tmp_path, last, lambda: time.sleep(0.002)):
        if entry.event.startswith("run."):
            found.append(entry.event)
        if entry.event == wanted[-1]:
            break
    writer.join()
    assert found == wanted
    assert len(list(tmp_path.glob("journal-*"))) > 2


def test_following_an_empty_journal_waits_for_its_first_entry(tmp_path: Path) -> None:
    timer = threading.Timer(0.1, lambda: Journal(tmp_path).append("run.first", {}))
    timer.start()
    assert followed(tmp_path, None, 1) == ["run.first"]
    timer.join()


def test_following_stops_where_the_chain_is_broken(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    last = journal.append("run.one", {"x": "1"})
    journal.append("run.two", {"x": "2"})
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines()
    forged = lines[1].partition('"previous":"')
    path.write_text(f'{lines[0]}\n{forged[0]}"previous":"{"0" * 64}"}}\n')
    with pytest.raises(StateError, match="chain is broken"):
        followed(tmp_path, last, 1)
