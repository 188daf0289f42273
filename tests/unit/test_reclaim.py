"""What dead runs left: found, removed, told, and never confused with what is somebody else's."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.runs import World, a_record, short_directory
from vmrun.hypervisor import capabilities, process, remains
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError
from vmrun.model.run_record import RunState
from vmrun.run.reclaim import EXIT_KILLED, reclaim_all
from vmrun.run.state import GuestDirectory, claim
from vmrun.run.teardown import reclaim, remove_guest
from vmrun.supervisor.records import Runs

_QEMU = "/usr/bin/qemu-system-x86_64"
_ASLEEP = "import time; time.sleep(100)"


@pytest.fixture
def world() -> Iterator[World]:
    with short_directory() as root:
        made = World(root)
        yield made
        made.close()


@contextlib.contextmanager
def running(*command: str, executable: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(command, executable=executable, stdin=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def qemu(domain: str, uuid_: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real QEMU that does nothing, with the arguments that libvirt gives."""
    name = f"guest={domain},debug-threads=on"
    idle = ("-S", "-machine", "none", "-nodefaults", "-display", "none")
    with running(_QEMU, "-name", name, *idle, "-uuid", uuid_) as child:
        deadline = time.monotonic() + 10
        while not process.find_guest_processes(uuid_, domain) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield child


def told(world: World) -> list[tuple[str, str]]:
    fields = ("run", "guest")
    return [
        (entry.event, next(entry.fields[name] for name in fields if name in entry.fields))
        for entry in Journal(world.directories.journal).entries()
    ]


def silent(_text: str) -> None:
    return


def orphan(world: World, **intent: str) -> GuestDirectory:
    return claim(
        world.directories, name=None, tenant="default", connect=intent.get("connect", "embedded")
    )


def test_a_lost_run_is_told_and_put_right(world: World) -> None:
    record = world.live("web")
    bystander = world.live("bystander")
    world.lose(record)
    notes: list[str] = []
    reclaim_all(world.directories, notes.append)
    last = world.runs.read(record.run_id)
    assert last is not None
    assert (last.state, last.exit_status) == (RunState.DEAD, EXIT_KILLED)
    assert last.receipt is not None
    assert last.receipt.clean
    assert told(world) == [("guest.reclaim", record.run_id), ("run.lost", record.run_id)]
    assert any("web" in note for note in notes)
    assert world.runs.read(bystander.run_id) == bystander
    # Nothing is told twice.
    reclaim_all(world.directories, silent)
    assert len(told(world)) == 2


@pytest.mark.parametrize("fields", [{"detached": False}, {"remove": True}])
def test_the_end_of_a_run_that_leaves_no_record_is_told_too(
    world: World, fields: dict[str, bool]
) -> None:
    record = world.live("web", **fields)
    world.lose(record)
    reclaim_all(world.directories, silent)
    assert world.runs.read(record.run_id) is None
    assert ("run.lost", record.run_id) in told(world)


def test_a_run_that_ended_but_was_never_told_of_is_told(world: World) -> None:
    """Its supervisor was killed while it tore the guest down."""
    record = world.live("web", state=RunState.EXITED, exit_status=3)
    world.lose(record)
    reclaim_all(world.directories, silent)
    last = world.runs.read(record.run_id)
    assert last is not None
    assert (last.state, last.exit_status) == (RunState.EXITED, 3)
    assert ("run.lost", record.run_id) in told(world)


def test_one_whose_last_word_is_being_written_is_left_alone(world: World) -> None:
    """Its guest, and with it the lock, is gone before the record has its receipt."""
    record = world.live("web")
    script = (
        "import sys, time; from pathlib import Path;"
        "from vmrun.supervisor.records import Runs;"
        "Runs(Path(sys.argv[1])).hold(sys.argv[2]); print('held', flush=True); time.sleep(100)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(world.directories.runs), record.run_id],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        directory = world.owned.pop(record.run_id)
        directory.remove()
        directory.release()
        reclaim_all(world.directories, silent)
        assert world.runs.read(record.run_id) == record
        assert told(world) == []
    finally:
        child.kill()
        child.communicate()
    reclaim_all(world.directories, silent)
    assert told(world) == [("run.lost", record.run_id)]


def test_a_record_that_was_removed_does_not_come_back(world: World) -> None:
    record = a_record("0123456789ab", "web")
    world.runs.write(record)
    assert world.runs.remove(record.run_id)
    assert not world.runs.update(record)
    assert not world.runs.folder(record.run_id).exists()


def test_folders_without_a_record_go_and_only_those(world: World) -> None:
    kept = world.ended("aaaaaaaaaaaa", "web")
    for run_id, name in (("bbbbbbbbbbbb", "record.json.partial"), ("cccccccccccc", "log")):
        world.runs.folder(run_id).mkdir()
        (world.runs.folder(run_id) / name).write_text("x")
    (world.directories.runs / "notes").mkdir()
    elsewhere = world.directories.guests.parent / "elsewhere"
    elsewhere.mkdir()
    world.runs.folder("dddddddddddd").symlink_to(elsewhere)
    assert world.runs.sweep() == ("bbbbbbbbbbbb", "cccccccccccc")
    names = {path.name for path in world.directories.runs.iterdir()}
    assert names == {kept.run_id, "notes", "dddddddddddd"}
    assert elsewhere.exists()


def test_records_made_while_others_sweep_are_whole(world: World) -> None:
    world.directories.runs.mkdir(parents=True)
    over = threading.Event()

    def sweep() -> None:
        while not over.is_set():
            Runs(world.directories.runs).sweep()

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(200):
            record = a_record(f"{number:012x}", f"web{number}")
            world.runs.write(record)
            assert world.runs.read(record.run_id) == record
    finally:
        over.set()
        sweeper.join(10)


def test_the_journal_hears_of_it_before_the_last_trace_goes(world: World) -> None:
    directory = orphan(world)
    directory.release()

    def fail(_run_id: str) -> None:
        raise StateError("the disk is full")

    with pytest.raises(StateError, match="disk is full"):
        reclaim(world.directories, tell=fail)
    # What says that there is something to tell is still there, and owned by nobody.
    assert (directory.path / "intent.json").exists()
    heard: list[str] = []
    reclaim(world.directories, tell=heard.append)
    assert heard == [directory.path.name]
    assert not directory.path.exists()


def test_one_that_cannot_be_told_of_does_not_keep_the_others(world: World) -> None:
    made = [orphan(world) for _ in range(3)]
    for directory in made:
        directory.release()
    bad = sorted(directory.path.name for directory in made)[0]

    def fail(run_id: str) -> None:
        if run_id == bad:
            raise StateError("no")

    with pytest.raises(StateError, match="no"):
        reclaim(world.directories, tell=fail)
    assert [path.exists() for path in sorted(d.path for d in made)] == [True, False, False]


def test_a_receipt_names_and_proves_what_was_in_a_directory(world: World) -> None:
    directory = orphan(world)
    directory.hypervisor_root.mkdir()
    (directory.path / "key").write_text("secret")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory.path / "ssh.0"))
        removed = remove_guest(directory)
    gone = {item.kind: item.gone for item in removed}
    # Its file is gone, but somebody still holds it.
    assert gone == {"domain root": True, "sockets": False, "keys": True, "directory": True}


def test_orphans_of_a_crash_are_found_by_their_id_alone(world: World) -> None:
    directory = orphan(world)
    run_id = directory.intent.run_id
    (directory.path / "intent.json").write_text('{"run_id": ')
    directory.release()
    with qemu(f"vmrun-{run_id}", directory.intent.uuid) as child:
        receipts = dict(reclaim(world.directories))
        assert receipts[run_id].clean
        assert child.wait(5) != 0
    assert not directory.path.exists()


def test_nobody_elses_process_is_touched(world: World) -> None:
    directory = orphan(world)
    domain, its_uuid = directory.intent.domain, directory.intent.uuid
    directory.release()
    words = ("-name", f"guest={domain},debug-threads=on", "-uuid", its_uuid)
    with (
        qemu(f"{domain}x", str(uuid.uuid4())) as longer,
        qemu("vmrun-0123456789ab", str(uuid.uuid4())) as other,
        running("qemu-system-x86_64", "-c", _ASLEEP, *words, executable=sys.executable) as false,
        running(sys.executable, "-c", _ASLEEP, *words) as named,
        qemu(domain, its_uuid) as ours,
        qemu(domain, its_uuid) as twin,
    ):
        deadline = time.monotonic() + 10
        while len(process.find_guest_processes(its_uuid, domain)) < 2:  # both have been executed
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert dict(reclaim(world.directories))[directory.path.name].clean
        assert ours.wait(5) != 0
        assert twin.wait(5) != 0
        for innocent in (longer, other, false, named):
            assert innocent.poll() is None


def test_a_pid_that_was_given_to_somebody_else_is_left_alone() -> None:
    with running(sys.executable, "-c", _ASLEEP) as child:
        assert process.kill_guest_process(child.pid, str(uuid.uuid4()))
        assert child.poll() is None


def test_what_may_not_be_killed_is_not_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    its_uuid = str(uuid.uuid4())

    def refuse(*_arguments: object) -> None:
        raise PermissionError

    with qemu("vmrun-0123456789ab", its_uuid) as child:
        monkeypatch.setattr("signal.pidfd_send_signal", refuse)
        assert not process.kill_guest_process(child.pid, its_uuid)


def test_memory_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    domain = f"vmrun-{uuid.uuid4().hex[:12]}"
    path = remains.memory_of(domain)
    path.symlink_to(tmp_path)
    try:
        assert remains.remains(domain=domain, uuid="") == ()
        assert remains.remove_remains(domain=domain, uuid="") == ()
        assert path.is_symlink()
        assert tmp_path.exists()
    finally:
        path.unlink()


def test_a_domain_that_vmrun_did_not_make_is_left_alone(world: World) -> None:
    """libvirt's own test driver has one domain, which knows nothing of vmrun."""
    connection = libvirt.open("test:///default")
    domain = connection.lookupByName("test")
    directory = orphan(world, connect="test:///default")
    path = directory.path / "intent.json"
    path.write_text(path.read_text().replace(directory.intent.uuid, domain.UUIDString()))
    directory.release()
    assert dict(reclaim(world.directories))[directory.path.name].clean
    assert domain.isActive()
    connection.close()


def test_what_a_killed_probe_left_goes_and_nothing_else(tmp_path: Path) -> None:
    cache = tmp_path / "capabilities"
    scratch, known = cache / "partial.abc123", cache / "0123456789abcdef"
    for path in (scratch / "etc", known):
        path.mkdir(parents=True)
    with (
        running(sys.executable, "-c", _ASLEEP, str(scratch)) as probe,
        running(sys.executable, "-c", _ASLEEP, str(cache / "partial.other")) as other,
    ):
        capabilities.sweep_probes(cache)
        assert probe.wait(5) != 0
        assert other.poll() is None
    assert not scratch.exists()
    assert known.exists()


def test_a_clean_state_is_left_as_it_is(world: World) -> None:
    reclaim_all(world.directories, silent)
    assert list(world.directories.guests.parent.iterdir()) == []
