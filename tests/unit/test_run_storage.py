"""A run's data between host and guest, above a scripted guest: what is sent where, and what happens
when the guest refuses, breaks off or lies."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine_fakes import FakeConnection, Remote
from tests.engine_samples import container_plan, image_of, plan_of
from vmrun.model.errors import GuestError, StateError, UsageError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.report import Receipt
from vmrun.planning.data import data_directory, plan_binds
from vmrun.planning.storage import make_storage
from vmrun.run.storage import RunStorage
from vmrun.run.teardown import Teardown
from vmrun.volume.pack import END

TOKEN = b"t0ken-that-nobody-sees"


class Case:
    """A plan with two host directories, one of them writable, and a secret; nothing on a disk."""

    def __init__(self, tmp_path: Path) -> None:
        self.source, self.results = tmp_path / "source", tmp_path / "results"
        for directory in (self.source, self.results):
            directory.mkdir()
            (directory / "file").write_text(directory.name)
        (tmp_path / "token").write_bytes(TOKEN)
        (tmp_path / "token").chmod(0o600)
        storage = make_storage(
            ["./source:/in", "./results:/out:rw"], ["token=token"], None, here=tmp_path
        )
        sample = plan_of(image_of(tmp_path / "image", []), container_plan())
        workload = replace(sample.workload, storage=storage)
        container = replace(sample.container, binds=plan_binds(storage, sample.run_id))
        self.plan: Plan = replace(sample, workload=workload, container=container)
        self.notes: list[str] = []
        self.storage = RunStorage(workload, tmp_path / "volumes", note=self.notes.append)
        self.teardown = Teardown()
        self.received = b""

    def take(self, remote: Remote) -> int:
        while data := remote.read(1 << 16):
            self.received += data
        return 0

    def populate(self, connection: FakeConnection) -> int:
        self.storage.look(Path("/guest"))
        return self.storage.populate(self.plan, connection, self.teardown)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def nothing_changed(remote: Remote) -> int:
    remote.write(END)
    return 0


def guest(
    case: Case,
    *,
    apply: Callable[[Remote], int | None] | None = None,
    tar: Callable[[Remote], int | None] = nothing_changed,
    release: Callable[[Remote], int | None] = lambda remote: 0,
) -> FakeConnection:
    return FakeConnection({"guest apply": apply or case.take, "exec tar": tar, "off()": release})


def test_everything_goes_into_the_guest_in_one_command(case: Case) -> None:
    connection = guest(case)
    moved = case.populate(connection)
    assert moved == len(case.received)
    (command,) = connection.commands
    assert TOKEN.decode() not in command
    assert data_directory(case.plan.run_id) in command
    with tarfile.open(fileobj=io.BytesIO(case.received)) as archive:
        members = {item.name: item for item in archive.getmembers()}
    assert list(members) == [
        "secrets",
        "secrets/token",
        "copies/0/content",
        "copies/0/content/file",
        "copies/1/content",
        "copies/1/content/file",
    ]
    assert {(item.uid, item.gid) for item in members.values()} == {(65532, 65532)}
    assert connection.processes[0].closed


def test_each_bind_has_its_options_before_the_container_sees_it(case: Case) -> None:
    connection = guest(case)
    case.populate(connection)
    (command,) = connection.commands
    applied = command.index("guest apply")
    for bind in case.plan.container.binds:
        options = "ro,nosuid,nodev,noexec" if bind.read_only else "nosuid,nodev,noexec"
        assert command.index(f"mount -o remount,bind,{options} {bind.source}") > applied
    assert "noswap" in command


def test_a_run_without_data_asks_nothing_of_the_guest(case: Case) -> None:
    plan = replace(case.plan, container=container_plan())
    connection = guest(case)
    assert case.storage.populate(plan, connection, case.teardown) == 0
    assert connection.commands == []
    assert case.teardown.run() == ()


def test_a_guest_that_refuses_says_why(case: Case) -> None:
    def refuse(remote: Remote) -> int:
        case.take(remote)
        remote.write_error(b"mount: x\nvmrun-guest: no room\x1b[2J\n")
        return 5

    with pytest.raises(GuestError, match=r"cannot take its data: no room\?\[2J"):
        case.populate(guest(case, apply=refuse))


def test_one_that_ends_before_all_was_sent_says_why(case: Case) -> None:
    (case.source / "large").write_bytes(bytes(4 << 20))

    def end(remote: Remote) -> int:
        remote.read(1)
        remote.write_error(b"there is no disk vmrun-volume-0\n")
        return 1

    with pytest.raises(GuestError, match="there is no disk vmrun-volume-0"):
        case.populate(guest(case, apply=end))


def test_a_connection_that_breaks_is_an_error(case: Case) -> None:
    with pytest.raises(VmrunError):
        case.populate(guest(case, apply=lambda remote: None))


def returned(*members: tuple[str, bytes]) -> Callable[[Remote], int]:
    def send(remote: Remote) -> int:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            remote.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        remote.write(END)
        return 0

    return send


def test_only_what_may_be_written_comes_back(case: Case) -> None:
    connection = guest(case, tar=returned(("1/content/file", b"new"), ("1/content/more", b"")))
    case.populate(connection)
    removed = case.storage.collect(case.plan, connection)
    assert (case.results / "file").read_text() == "new"
    assert (case.results / "more").exists()
    assert (case.source / "file").read_text() == "source"
    assert Receipt(removed).clean
    assert "0/content" not in connection.commands[1]
    assert case.teardown.run() == (), "what was released is not released again"
    assert len(connection.commands) == 3


@pytest.mark.parametrize(
    "name", ["0/content/file", "2/content/file", "1/other", "1", "file", "1/content/../../x"]
)
def test_a_guest_cannot_send_what_was_not_asked_for(case: Case, name: str) -> None:
    connection = guest(case, tar=returned((name, b"x")))
    case.populate(connection)
    with pytest.raises(GuestError):
        case.storage.collect(case.plan, connection)
    assert (case.source / "file").read_text() == "source"
    # The guest is unmounted all the same.
    assert [item.gone for item in case.teardown.run()] == [True]


def test_more_than_there_can_be_is_refused(case: Case) -> None:
    limit = case.plan.container.limits.memory + (2 << 20)

    def flood(remote: Remote) -> int:
        info = tarfile.TarInfo("1/content/file")
        info.size = limit
        remote.write(info.tobuf(tarfile.GNU_FORMAT))
        return 0

    connection = guest(case, tar=flood)
    case.populate(connection)
    with pytest.raises(GuestError, match="more than it could have"):
        case.storage.collect(case.plan, connection)
    assert (case.results / "file").read_text() == "results"


def test_a_tar_that_fails_is_an_error(case: Case) -> None:
    def fail(remote: Remote) -> int:
        remote.write(END)
        remote.write_error(b"tar: short read\n")
        return 1

    connection = guest(case, tar=fail)
    case.populate(connection)
    with pytest.raises(GuestError, match="tar: short read"):
        case.storage.collect(case.plan, connection)


def test_data_that_could_not_be_written_out_is_an_error(case: Case) -> None:
    def busy(remote: Remote) -> int:
        remote.write_error(b"/run/x is still in use\n")
        return 1

    connection = guest(case, release=busy)
    case.populate(connection)
    with pytest.raises(GuestError, match="was not written out: /run/x is still in use"):
        case.storage.collect(case.plan, connection)


def test_a_run_that_fails_is_unmounted_by_its_teardown(case: Case) -> None:
    connection = guest(case)
    case.populate(connection)
    (removed,) = case.teardown.run()
    assert (removed.kind, removed.gone) == ("mounts", True)


def test_a_guest_that_is_gone_has_no_mounts_either(case: Case) -> None:
    """What could not be saved is told; there is nothing that the next command could remove."""
    connection = guest(case, release=lambda remote: None)
    case.populate(connection)
    assert Receipt(case.teardown.run()).clean
    assert [note for note in case.notes if "was not written out" in note]


def test_what_is_not_there_is_said_before_anything_is_made(case: Case) -> None:
    (case.source / "file").unlink()
    case.source.rmdir()
    with pytest.raises(StateError, match="No such file or directory"):
        case.storage.look(Path("/guest"))


def test_a_volume_that_is_not_there_is_said_before_anything_is_made(tmp_path: Path) -> None:
    sample = plan_of(image_of(tmp_path, []), container_plan())
    storage = make_storage(["db:/data"], [], None, here=tmp_path)
    workload = replace(sample.workload, storage=storage)
    with pytest.raises(StateError, match="has no volume 'db'"):
        RunStorage(workload, tmp_path / "volumes", note=print).look(Path("/guest"))


def test_a_secret_that_is_not_set_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    sample = plan_of(image_of(tmp_path, []), container_plan())
    storage = make_storage([], ["id=token,env=MY_TOKEN"], None, here=tmp_path)
    with pytest.raises(UsageError, match="MY_TOKEN"):
        RunStorage(
            replace(sample.workload, storage=storage), tmp_path / "volumes", note=print
        ).look(Path("/guest"))
