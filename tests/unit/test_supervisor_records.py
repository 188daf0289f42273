"""Records of runs: found by name and id, whole or not at all, and removed without a trace."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import a_record
from vmrun.model.errors import NameInUse, StateError, UsageError
from vmrun.model.run_record import RunState
from vmrun.model.signals import signal_number
from vmrun.supervisor.records import Runs

ONE, TWO, THREE = "aaaaaaaaaaaa", "aaaabbbbbbbb", "cccccccccccc"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def test_a_record_is_read_as_it_was_written(runs: Runs) -> None:
    record = a_record(ONE, "web")
    runs.write(record)
    assert runs.read(ONE) == record
    runs.write(replace(record, state=RunState.EXITED, exit_status=3))
    changed = runs.read(ONE)
    assert changed is not None
    assert changed.exit_status == 3
    assert runs.read(TWO) is None


def test_only_its_owner_can_read_it(runs: Runs) -> None:
    runs.write(a_record(ONE, "web"))
    assert runs.folder(ONE).stat().st_mode & 0o777 == 0o700
    assert (runs.folder(ONE) / "record.json").stat().st_mode & 0o777 == 0o600


def test_runs_are_found_by_name_id_and_its_beginning(runs: Runs) -> None:
    for run_id, name in ((ONE, "web"), (TWO, "db"), (THREE, "aaaa")):
        runs.write(a_record(run_id, name))
    assert runs.find("web").run_id == ONE
    assert runs.find(TWO).name == "db"
    assert runs.find("c").run_id == THREE
    assert runs.find("aaaab").run_id == TWO
    assert runs.find("aaaa").run_id == THREE, "a name comes before the beginning of an id"
    with pytest.raises(StateError, match="'aaa' is ambiguous"):
        runs.find("aaa")
    for nothing in ("", "nobody", "AAAA", "../runs", "a" * 5000):
        with pytest.raises(StateError, match="no such run") as caught:
            runs.find(nothing)
        assert len(caught.value.message) < 200


def test_a_damaged_record_is_told_and_hides_no_other(runs: Runs) -> None:
    runs.write(a_record(ONE, "web"))
    runs.write(a_record(TWO, "db"))
    (runs.folder(ONE) / "record.json").write_text('{"run_id": 1')
    told: list[StateError] = []
    assert [r.name for r in runs.all(on_damage=told.append)] == ["db"]
    assert f"vmrun rm {ONE}" in told[0].hint
    with pytest.raises(StateError, match="is damaged"):
        runs.read(ONE)
    assert runs.find("db").run_id == TWO


def test_what_is_no_run_is_left_alone(runs: Runs, tmp_path: Path) -> None:
    for strange in ("notes", "AAAAAAAAAAAA", "..", "aaaaaaaaaaaa.bak"):
        (tmp_path / "runs" / strange).mkdir(parents=True, exist_ok=True)
    assert runs.all(on_damage=pytest.fail) == ()
    for strange in ("../victim", "notes", "", "aaaaaaaaaaaa/../.."):
        with pytest.raises(StateError, match="not a run id"):
            runs.remove(strange)


def test_a_link_in_the_place_of_a_folder_leads_nowhere(runs: Runs, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ONE).symlink_to(victim)
    assert not runs.remove(ONE)
    assert (victim / "precious").exists()


def test_names_of_ended_runs_are_taken(runs: Runs) -> None:
    runs.write(a_record(ONE, "web", state=RunState.EXITED))
    with pytest.raises(NameInUse, match="'web' is in use") as caught:
        runs.must_be_free("web")
    assert "vmrun rm web" in caught.value.hint
    runs.must_be_free("other")
    runs.must_be_free(None)


def test_removal_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    runs.write(a_record(ONE, "web"))
    (runs.folder(ONE) / "log").write_text("x")
    assert runs.remove(ONE)
    assert os.listdir(tmp_path / "runs") == []
    assert not runs.update(a_record(ONE, "web")), "what was removed is not written again"
    assert os.listdir(tmp_path / "runs") == []


def test_a_record_of_another_version_is_an_error(runs: Runs) -> None:
    runs.write(a_record(ONE, "web"))
    path = runs.folder(ONE) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_tomorrow": 1}))
    with pytest.raises(StateError, match="unknown field 'from_tomorrow'"):
        runs.read(ONE)


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TERM", 15), ("SIGTERM", 15), ("sigterm", 15), ("15", 15), (" hup ", 1), ("SYS", 31),
        ("RTMIN", 34), ("RTMIN+1", 35), ("SIGRTMIN+30", 64), ("64", 64),
    ],
)  # fmt: skip
def test_signals_have_names_and_numbers(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "-9", "NOPE", "TERM+1", "RTMIN+31", "SIG", "٣"])
def test_what_is_no_signal_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no signal"):
        signal_number(name)


@given(st.text(max_size=12))
def test_any_text_is_a_signal_or_refused(name: str) -> None:
    with contextlib.suppress(UsageError):
        assert 1 <= signal_number(name) <= 64
