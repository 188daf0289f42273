"""``vmrun tenant`` and runs for tenants, as far as no guest is needed: what is said and refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import World, a_record, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.cli.tenant_run import of_tenant
from vmrun.model.errors import StateError
from vmrun.model.run_record import RunState
from vmrun.model.workload import ProfileName
from vmrun.run.state import GuestDirectory, claim
from vmrun.settings import load_settings
from vmrun.supervisor.protocol import SOCKET, Line
from vmrun.supervisor.server import Server

IMAGE = "oci:/nonexistent/image"


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


@pytest.fixture
def acme(world: World, vmrun: Vmrun) -> None:
    options = ("--no-start", "--cpus", "2", "--memory", "1g", "--guests", "3", "--disk", "5g")
    assert vmrun("tenant", "create", *options, "acme").out == "acme\n"


def shared_guest(world: World, tenant: str) -> GuestDirectory:
    directory = claim(world.directories, name=None, tenant=tenant, connect="embedded", shared=True)
    world.owned[directory.intent.run_id] = directory
    return directory


def test_a_tenant_is_listed_with_what_it_has(world: World, vmrun: Vmrun, acme: None) -> None:
    (listed,) = json.loads(vmrun("tenant", "ls", "--json").out)
    assert listed == json.loads(vmrun("tenant", "inspect", "acme").out)
    assert (listed["engine"], listed["guest"]) == ("docker", "")
    assert listed["quota"] == {"cpus": 2.0, "memory": 1 << 30, "disk": 5 << 30, "guests": 3}
    guest = shared_guest(world, "acme").intent.run_id
    assert json.loads(vmrun("tenant", "inspect", "acme").out)["guest"] == guest
    line = vmrun("tenant", "ls").out.splitlines()[1]
    assert " ".join(line.split()) == "acme running docker 0 0 B / 1.0 GiB 2 1 / 3 0 B / 5.0 GiB"
    (entry,) = json.loads(vmrun("audit", "show", "--json", "--event", "tenant.create").out)
    assert entry["fields"]["tenant"] == "acme"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("acme",), 1, "there is a tenant 'acme' already"),
        (("default",), 1, "that name is vmrun's"),
        (("Acme",), 2, "not a tenant's name: 'Acme'"),
        (("../x",), 2, "not a tenant's name"),
        (("b", "--cpus", "0"), 2, "--cpus"),
        (("b", "--memory", "much"), 2, "--memory: not a size"),
        (("b", "--memory", "1m"), 2, "too little"),
        (("b", "--guests", "0"), 2, "--guests 0 is not possible"),
    ],
)
def test_what_is_no_tenant_is_refused(
    world: World, vmrun: Vmrun, acme: None, words: tuple[str, ...], status: int, said: str
) -> None:
    done = vmrun("tenant", "create", "--no-start", *words)
    assert done.status == status
    assert said in done.err
    assert [one["name"] for one in json.loads(vmrun("tenant", "ls", "--json").out)] == ["acme"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tenant", "nobody"), "create it: vmrun tenant create nobody"),
        (("--tenant", "nobody", "-d"), "there is no tenant 'nobody'"),
        (("--tenant", "nobody", "--own-guest"), "there is no tenant 'nobody'"),
        (("--tenant", "../acme"), "not a tenant's name"),
        (("--tenant", "acme"), "start it: vmrun tenant start acme"),
        (("--tenant", "acme", "--engine", "crun"), "the guest of tenant 'acme' has docker"),
        (("--tenant", "acme", "--base", "minimal"), "--base is not possible in the guest"),
        (("--tenant", "acme", "--keep"), "--keep is not possible in the guest"),
        (("--tenant", "acme", "--report", "report"), "add --own-guest"),
    ],
)
def test_a_run_that_cannot_be_for_a_tenant_says_why(
    world: World, vmrun: Vmrun, acme: None, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = vmrun("run", *words, IMAGE, "--", "true")
    assert done.status == 125
    assert said in done.err
    assert list(world.directories.guests.glob("[0-9a-f]*")) == []


def test_plan_knows_only_tenants_that_there_are(world: World, vmrun: Vmrun) -> None:
    done = vmrun("plan", "--tenant", "nobody", IMAGE)
    assert (done.status, done.out) == (1, "")
    assert "vmrun tenant create nobody" in done.err


def test_a_tenants_runs_have_its_own_stores_and_the_stricter_floor(
    world: World, vmrun: Vmrun
) -> None:
    for floor in ("healthcare", "baseline"):
        vmrun("tenant", "create", "--no-start", "--profile-floor", floor, floor)
    settings = load_settings()
    owner, own = of_tenant(settings, "healthcare")
    assert owner.shares_guest
    assert own.floor is ProfileName.HEALTHCARE
    assert own.directories.images == world.directories.tenants / "healthcare" / "images"
    strict = load_settings(flags={"minimum_profile": "restricted"})
    assert of_tenant(strict, "baseline")[1].floor is ProfileName.RESTRICTED
    assert of_tenant(settings, "default")[1] == settings
    with pytest.raises(StateError, match="there is no tenant"):
        of_tenant(settings, "other")


def test_a_guest_is_had_once(world: World, vmrun: Vmrun, acme: None) -> None:
    shared_guest(world, "acme")
    done = vmrun("tenant", "start", "acme")
    assert done.status == 1
    assert "runs already, or is being started" in done.err


def test_stopping_looks_whether_it_is_gone(world: World, vmrun: Vmrun, acme: None) -> None:
    directory = shared_guest(world, "acme")
    guest = directory.intent.run_id
    record = a_record("a" * 12, "web", tenant="acme", guest=guest)
    world.runs.write(record)

    def end(line: Line, _request: dict[str, Any]) -> None:
        line.send({"done": True})
        world.runs.write(a_record("a" * 12, "web", tenant="acme", state=RunState.EXITED))
        directory.remove()
        world.owned.pop(guest).release()

    server = Server(directory.path / SOCKET, {"end": end})
    done = vmrun("tenant", "stop", "acme", "--json")
    server.close()
    assert done.status == 0, done.err
    assert [(r["kind"], r["gone"]) for r in json.loads(done.out)["removed"]] == [
        ("container", True), ("domain", True), ("directory", True),
    ]  # fmt: skip
    done = vmrun("tenant", "stop", "acme")
    assert done.status == 1
    assert "does not run" in done.err


def test_removing_a_tenant_removes_what_is_its_and_nothing_else(
    world: World, vmrun: Vmrun, acme: None
) -> None:
    vmrun("tenant", "create", "--no-start", "other")
    world.ended("a" * 12, "web", tenant="acme")
    world.ended("b" * 12, "job", tenant="other")
    (world.directories.for_tenant("acme").images / "blobs").mkdir(parents=True)
    done = vmrun("tenant", "rm", "acme")
    assert done.status == 0, done.err
    assert "removed record web" in done.err
    assert [record.name for record in world.runs.all(on_damage=lambda _: None)] == ["job"]
    assert sorted(os.listdir(world.directories.tenants)) == [".lock", "other"]
    assert vmrun("tenant", "rm", "acme").status == 1


def test_a_tenant_whose_guests_run_is_not_removed(world: World, vmrun: Vmrun, acme: None) -> None:
    shared_guest(world, "acme")
    done = vmrun("tenant", "rm", "acme")
    assert done.status == 1
    assert "vmrun tenant rm --force acme" in done.err
    assert json.loads(vmrun("tenant", "ls", "--json").out)[0]["name"] == "acme"


def test_a_tenant_with_volumes_is_removed_only_with_them(
    world: World, vmrun: Vmrun, acme: None, tmp_path: Path
) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("a long and secret passphrase")
    create = ("volume", "create", "--tenant", "acme", "--passphrase-file", str(passphrase))
    done = vmrun(*create, "--size", "6g", "large")
    assert done.status == 1
    assert "6.0 GiB of disk do not fit" in done.err
    assert vmrun(*create, "--size", "16m", "db").status == 0
    done = vmrun("tenant", "rm", "--force", "acme")
    assert done.status == 1
    assert "has volumes: db" in done.err
    assert json.loads(vmrun("tenant", "inspect", "acme").out)["used"]["disk"] == 16 << 20
    done = vmrun("tenant", "rm", "--volumes", "acme")
    assert done.status == 0, done.err
    assert "removed volume db" in done.err
    assert not (world.directories.volumes / "acme").exists()


def test_a_damaged_tenant_can_be_removed_by_force(world: World, vmrun: Vmrun, acme: None) -> None:
    (world.directories.tenants / "acme" / "tenant.json").write_text("{}")
    done = vmrun("tenant", "ls")
    assert done.status == 1
    assert "is damaged" in done.err
    assert vmrun("tenant", "rm", "acme").status == 1
    assert vmrun("tenant", "rm", "--force", "acme").status == 0
    assert vmrun("tenant", "ls").status == 0
    assert vmrun("tenant", "rm", "--force", "default").status == 1
