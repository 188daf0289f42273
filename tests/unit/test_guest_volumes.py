"""The volumes of a tenant's guest: planned, taken, mounted once, and given back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.engine_fakes import FakeConnection, Remote
from tests.engine_samples import container_plan, image_of, plan_of
from tests.runs import a_record, short_directory
from tests.volumes import quick_volume
from vmrun.model.errors import GuestError, StateError
from vmrun.model.plan import GuestPlan
from vmrun.model.report import Receipt
from vmrun.model.storage import NamedVolume, Storage
from vmrun.model.wire import encode
from vmrun.planning.data import (
    TENANT_VOLUMES,
    data_directory,
    disk_content,
    plan_binds,
    plan_tenant_disks,
    shared_volumes,
    volume_serial,
)
from vmrun.run.directories import StateDirectories
from vmrun.run.guest_volumes import GuestVolumes
from vmrun.run.state import GuestDirectory, claim
from vmrun.run.storage import RunStorage
from vmrun.run.teardown import Teardown
from vmrun.supervisor.answers import Answers, Living
from vmrun.supervisor.protocol import Line
from vmrun.supervisor.sealed import MOST, opened, sealed
from vmrun.volume.store import VolumeStore

# Planned.


def test_a_guest_has_all_volumes_of_its_tenant() -> None:
    disks = plan_tenant_disks(["b", "a"], tenant="acme", uuid="u", directory=Path("/guest"))
    assert [disk.serial for disk in disks] == [volume_serial("a"), volume_serial("b")]
    assert not any(disk.read_only for disk in disks)
    assert len({disk.secret for disk in disks}) == 2
    longest = volume_serial("x" * 63)
    assert len(longest) == 20, "more would be cut off by the guest's kernel"
    assert len({volume_serial(f"v{number}") for number in range(2000)}) == 2000


def test_more_than_a_guest_can_have_are_refused() -> None:
    names = [f"v{number}" for number in range(17)]
    with pytest.raises(StateError, match="has 17 volumes") as error:
        plan_tenant_disks(names, tenant="acme", uuid="u", directory=Path("/guest"))
    assert "vmrun volume rm --tenant acme" in error.value.hint


def test_a_container_sees_a_bind_of_its_own() -> None:
    storage = Storage(volumes=(NamedVolume("db", "/db", read_only=True),))
    for run_id in ("a" * 12, "b" * 12):
        (bind,) = plan_binds(storage, run_id, shared=True)
        (volume,) = shared_volumes(storage, run_id)
        assert bind.source == volume.at
        assert bind.source.startswith(data_directory(run_id) + "/")
        assert bind.read_only
        assert volume.content == disk_content(TENANT_VOLUMES, volume_serial("db"))
    assert len(TENANT_VOLUMES) != 12, "no run has that id"


# Taken, mounted, given back.


class World:
    """A tenant with two volumes, and the directory of its guest."""

    def __init__(self, root: Path) -> None:
        self.directories = StateDirectories(root / "guests", root / "cache", (root,))
        self.passphrase = root / "passphrase"
        self.passphrase.touch(mode=0o600)
        self.passphrase.write_text("correct horse")
        self.store = VolumeStore(self.directories.volumes, "acme")
        self.notes: list[str] = []
        self.teardown = Teardown()
        self.guest: GuestDirectory = claim(
            self.directories, name=None, tenant="acme", connect="qemu:///system", shared=True
        )
        sample = plan_of(image_of(root / "image", []), container_plan())
        disks = plan_tenant_disks(["db", "web"], tenant="acme", uuid="u", directory=self.guest.path)
        self.plan: GuestPlan = replace(sample.guest, disks=disks)
        self.volumes = GuestVolumes(
            self.plan, "acme", self.directories.volumes, note=self.notes.append
        )

    def prepare(self) -> None:
        self.volumes.prepare(self.guest, self.teardown)

    def users(self) -> set[str]:
        return {volume.in_use_by for volume in self.store.list()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        for name in ("db", "web"):
            quick_volume(name, made.passphrase, tenant="acme")
        yield made
        made.teardown.run()
        made.guest.release()


def mounted(answer: Callable[[Remote], int | None] = lambda remote: 0) -> FakeConnection:
    return FakeConnection({"mount -t ext4": answer, "off()": lambda remote: 0})


def test_they_are_held_from_before_the_guest_to_its_end(world: World) -> None:
    world.prepare()
    assert world.users() == {world.guest.intent.run_id}
    for disk in world.plan.disks:
        assert disk.path.stat().st_nlink == 2
    connection = mounted()
    world.volumes.mount(connection, world.teardown)
    (command,) = connection.commands
    for disk in world.plan.disks:
        assert disk.serial in command
    assert "noexec" in command
    removed = world.teardown.run()
    assert Receipt(removed).clean
    assert [item.name for item in removed if item.kind == "volume lock"] == ["web", "db"]
    assert removed[0].kind == "mounts", "written out before anything is taken away"
    assert world.users() == {""}
    assert not any(disk.path.exists() for disk in world.plan.disks)


@pytest.mark.parametrize("name", ["db", "web"])
def test_a_wrong_passphrase_names_the_volume_and_holds_none(world: World, name: str) -> None:
    other = world.passphrase.with_name("other")
    other.touch(mode=0o600)
    other.write_text("wrong")
    path = world.store.get(name).path / "volume.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "passphrase_file": str(other)}))
    with pytest.raises(StateError, match=f"volume '{name}': the passphrase does not open it"):
        world.prepare()
    world.teardown.run()
    assert world.users() == {""}


def test_a_passphrase_that_is_gone_names_the_volume(world: World) -> None:
    world.passphrase.unlink()
    with pytest.raises(StateError, match="volume 'db': cannot read the passphrase"):
        world.prepare()


def test_one_that_is_in_use_names_its_user(world: World) -> None:
    from vmrun.volume.store import HeldVolume

    with (
        HeldVolume.take(world.store.get("web"), "another"),
        pytest.raises(StateError, match="volume 'web' is in use by another"),
    ):
        world.prepare()


def test_one_that_was_removed_meanwhile_keeps_the_guest_from_starting(world: World) -> None:
    world.store.remove("web")
    with pytest.raises(StateError, match="was removed just now"):
        world.prepare()
    assert world.users() == {""}


def test_a_file_system_that_cannot_be_mounted_names_the_volume(world: World) -> None:
    def refuse(remote: Remote) -> int:
        remote.write_error(b"mount: bad superblock\nvolume 'db' cannot be mounted\n")
        return 1

    world.prepare()
    with pytest.raises(GuestError, match="volume 'db' cannot be mounted") as error:
        world.volumes.mount(mounted(refuse), world.teardown)
    assert "bad superblock" in error.value.details


def test_a_guest_that_is_gone_gives_them_back_all_the_same(world: World) -> None:
    world.prepare()
    connection = FakeConnection({"mount -t ext4": lambda remote: 0, "off()": lambda remote: None})
    world.volumes.mount(connection, world.teardown)
    assert Receipt(world.teardown.run()).clean
    assert world.users() == {""}
    assert [note for note in world.notes if "were not written out" in note]


def test_a_tenant_without_volumes_needs_nothing(world: World) -> None:
    plan = replace(world.plan, disks=())
    volumes = GuestVolumes(plan, "acme", world.directories.volumes, note=world.notes.append)
    volumes.prepare(world.guest, world.teardown)
    with volumes.unlocked():
        volumes.mount(FakeConnection({}), world.teardown)
    assert world.teardown.run() == ()


# A container in it.


def test_a_container_binds_what_is_mounted(world: World, tmp_path: Path) -> None:
    storage = Storage(
        volumes=(NamedVolume("db", "/db"), NamedVolume("web", "/web", read_only=True))
    )
    sample = plan_of(image_of(tmp_path, []), container_plan())
    binds = plan_binds(storage, sample.run_id, shared=True)
    plan = replace(
        sample,
        workload=replace(sample.workload, storage=storage, tenant="acme"),
        guest=world.plan,
        container=replace(sample.container, binds=binds),
    )
    run = RunStorage(plan.workload, world.directories.volumes, note=print)
    run.look(world.guest.path, given={})

    def apply(remote: Remote) -> int:
        while remote.read(1 << 16):
            pass
        return 0

    connection = FakeConnection({"guest apply": apply, "off()": lambda remote: 0})
    run.populate(plan, connection, world.teardown)
    (command,) = connection.commands
    assert "mount -t ext4" not in command, "it is mounted already"
    for volume in shared_volumes(storage, plan.run_id):
        assert f"mount -o bind {volume.content} {volume.at}" in command
    assert command.count("chown 65532:65532") == 1, "what is read-only is nobody's to give"
    run.collect(plan, connection)
    released = connection.commands[1]
    assert all(f"off {bind.source}" in released for bind in binds)
    assert f"/{TENANT_VOLUMES}/" not in released, "others go on using it"


# Secrets that a command has read for the supervisor.


def test_secrets_travel_as_they_are() -> None:
    secrets = {"a": b"\x00\xff\n", "b": b""}
    assert opened(json.loads(json.dumps(sealed(secrets)))) == secrets


@pytest.mark.parametrize(
    "found", [[], "x", {"a": 1}, {"a": None}, {"a": "not base64!"}, {"a": "ä"}, {"a": ["eA=="]}]
)
def test_anything_else_is_refused_and_not_shown(found: object) -> None:
    with pytest.raises(StateError) as error:
        opened(found)
    assert "base64!" not in error.value.message


def test_more_than_a_request_holds_is_refused() -> None:
    with pytest.raises(StateError, match="4 MiB"):
        sealed({"a": bytes(MOST), "b": b"x"})


@pytest.mark.parametrize(
    "given", [{}, {"token": b"x", "other": b"x"}, {"other": b"x"}, {"token": bytes((1 << 20) + 1)}]
)
def test_a_run_takes_its_own_secrets_only(tmp_path: Path, given: dict[str, bytes]) -> None:
    from vmrun.planning.storage import make_storage

    sample = plan_of(image_of(tmp_path, []), container_plan())
    storage = make_storage([], ["id=token,env=TOKEN"], None, here=tmp_path)
    run = RunStorage(replace(sample.workload, storage=storage), tmp_path, note=print)
    with pytest.raises(StateError):
        run.look(tmp_path, given=given)


def test_a_process_with_secrets_leaves_no_core_dump() -> None:
    program = (
        "import ctypes, os, resource\n"
        "from vmrun.volume.undumped import leave_no_core_dump\n"
        "leave_no_core_dump()\n"
        "dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0], dumpable if os.geteuid() == 0 else 0)\n"
        "os.listdir('/proc/self/fd')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0 0\n"


def test_what_a_command_sent_is_kept_for_the_start_and_no_longer(tmp_path: Path) -> None:
    """Also when the run is not started after all."""
    kept: dict[str, bytes] = {}
    seen: list[dict[str, bytes]] = []

    @contextlib.contextmanager
    def entrusted(run_id: str, secrets: Mapping[str, bytes]) -> Iterator[None]:
        kept.update(secrets)
        yield
        kept.clear()

    class Full:
        def add(self, *_arguments: object) -> None:
            seen.append(dict(kept))
            raise StateError("the guest is ending")

    plan = plan_of(image_of(tmp_path, []), container_plan())
    request = {
        "plan": encode(plan),
        "record": encode(a_record(plan.run_id, "web")),
        "secrets": sealed({"token": b"x"}),
    }
    answers = Answers(cast(Living, Full()), entrusted)
    with pytest.raises(StateError, match="is ending"):
        answers.run(cast(Line, None), request)
    assert seen == [{"token": b"x"}]
