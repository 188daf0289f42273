"""A tenant's guest on the host: what is kept of each container, its share, and who runs when."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine_samples import container_plan, image_of, plan_of
from tests.runs import a_record, short_directory
from vmrun.model.errors import ChannelError, EngineError, NameInUse, Refused, StateError, UsageError
from vmrun.model.live import ContainerReading
from vmrun.model.plan import Plan
from vmrun.model.quantity import MIB
from vmrun.model.report import Usage
from vmrun.model.run_record import RunState
from vmrun.model.storage import NamedVolume, Storage
from vmrun.model.tenant import Quota, Share, Tenant
from vmrun.model.workload import EngineName, Limits
from vmrun.planning.data import plan_tenant_disks, shared_volumes
from vmrun.planning.share import share_of
from vmrun.run.containers import (
    ContainerDirectory,
    claim_container,
    hold_container,
    sweep_containers,
)
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.shares import Shares, taken
from vmrun.run.state import GuestDirectory, alive, claim
from vmrun.supervisor.records import Runs
from vmrun.supervisor.service import Surroundings
from vmrun.supervisor.services import Services
from vmrun.tenant.store import TenantStore

QUOTA = Quota(2.0, 512 * MIB, 1 << 30, 2)


@pytest.fixture
def directories() -> Iterator[StateDirectories]:
    with short_directory() as root:
        found = StateDirectories(root / "guests", root / "cache", (root / "bases",))
        TenantStore(found.tenants).create(Tenant("acme", 0.0, EngineName.CRUN, QUOTA))
        yield found


@pytest.fixture
def guest(directories: StateDirectories) -> Iterator[GuestDirectory]:
    made = claim(directories, name=None, tenant="acme", connect="embedded", shared=True)
    yield made
    made.release()


def intent_of(guest: GuestDirectory, name: str = "") -> Intent:
    run_id = uuid.uuid4().hex[:12]
    return replace(
        guest.intent,
        run_id=run_id,
        name=name or run_id,
        domain=f"vmrun-{run_id}",
        shared=False,
        guest=guest.intent.run_id,
    )


# What is kept of each container.


def test_a_container_lives_as_long_as_somebody_holds_its_directory(
    directories: StateDirectories, guest: GuestDirectory
) -> None:
    container = claim_container(guest.path, intent_of(guest, "web"))
    run_id = container.intent.run_id
    assert [i.name for i in alive(directories) if i.guest] == ["web"]
    held = hold_container(guest.path, run_id)
    container.release()
    sweep_containers(guest.path)
    assert held.path.is_dir()
    held.release()
    assert [i for i in alive(directories) if i.guest] == []
    sweep_containers(guest.path)
    assert not held.path.exists()


def test_it_goes_with_its_guest(directories: StateDirectories, guest: GuestDirectory) -> None:
    container = claim_container(guest.path, intent_of(guest))
    container.image.mkdir()
    assert guest.remove()
    assert not container.path.exists()
    with pytest.raises(StateError):
        claim_container(guest.path, intent_of(guest))


def test_nobody_else_may_look(guest: GuestDirectory) -> None:
    container = claim_container(guest.path, intent_of(guest))
    assert container.path.parent.stat().st_mode & 0o777 == 0o700
    assert container.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("run_id", ["", "..", "../intent.json", "0" * 12, "x" * 12])
def test_what_was_not_claimed_cannot_be_held(guest: GuestDirectory, run_id: str) -> None:
    with pytest.raises(StateError, match="has no directory"):
        hold_container(guest.path, run_id)


# Its share of the quota.


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(image_of(tmp_path / "image", [b""]), container_plan())


def test_a_share_is_the_limit_the_image_and_what_a_container_costs(plan: Plan) -> None:
    image = replace(plan.image, tree=replace(plan.image.tree, unpacked_bytes=10 * MIB))
    memory = replace(plan.guest.memory, workload=64 * MIB, image=12 * MIB, reserve=8 * MIB)
    blobs = sum(layer.blob.size for layer in image.layers)
    planned = replace(plan, image=image, guest=replace(plan.guest, memory=memory))
    assert share_of(planned) == Share(84 * MIB - blobs, blobs, 0.5, 0)
    own = replace(planned, guest=replace(planned.guest, name=f"vmrun-{plan.run_id}"))
    assert share_of(own).memory == 76 * MIB - blobs


def test_many_at_once_get_no_more_than_the_quota(
    directories: StateDirectories, guest: GuestDirectory, plan: Plan
) -> None:
    kept: list[ContainerDirectory] = []

    def enter() -> None:
        container = claim_container(guest.path, intent_of(guest))
        try:
            Shares(directories, "acme").reserve(plan, container)
        except Refused:
            container.remove()
            container.release()
            return
        kept.append(container)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    each = share_of(plan).memory
    assert len(kept) == QUOTA.memory // each
    assert sum(one.share.memory for one in taken(directories, "acme")) == len(kept) * each
    kept[0].remove()
    kept.pop(0).release()
    kept.append(claim_container(guest.path, intent_of(guest)))
    Shares(directories, "acme").reserve(plan, kept[-1])
    for container in kept:
        container.release()


def test_guests_are_counted(
    directories: StateDirectories, guest: GuestDirectory, plan: Plan
) -> None:
    first, second = (
        claim(directories, name=None, tenant="acme", connect="embedded") for _ in range(2)
    )
    with pytest.raises(Refused, match="may have 2 guests, and has 2"):
        Shares(directories, "acme").reserve(plan, second)
    second.remove()
    second.release()
    Shares(directories, "acme").reserve(plan, first)
    first.release()


def test_another_tenants_guests_count_for_nothing(
    directories: StateDirectories, guest: GuestDirectory, plan: Plan
) -> None:
    TenantStore(directories.tenants).create(Tenant("other", 0.0, EngineName.CRUN, QUOTA))
    theirs = claim(directories, name=None, tenant="other", connect="embedded")
    Shares(directories, "other").reserve(plan, theirs)
    assert [one.run_id for one in taken(directories, "acme")] == [guest.intent.run_id]
    assert [one.run_id for one in taken(directories, "other")] == [theirs.intent.run_id]
    theirs.release()


def test_a_tenant_that_was_removed_meanwhile_takes_nothing(
    directories: StateDirectories, guest: GuestDirectory, plan: Plan
) -> None:
    store = TenantStore(directories.tenants)
    with store.locked():
        store.remove("acme")
    container = claim_container(guest.path, intent_of(guest))
    with pytest.raises(StateError, match="there is no tenant 'acme'"):
        Shares(directories, "acme").reserve(plan, container)
    container.release()


# Who runs when.


class FakeEngine:
    """Notes what is asked of it; its containers run until they are killed."""

    def __init__(self) -> None:
        self.images: set[str] = set()
        self.delivering = threading.Event()
        self.may_deliver = threading.Event()
        self.may_deliver.set()
        self.notes: list[str] = []
        self.at_once = threading.Lock()
        self.fails = False

    def deliver(self, plan: Plan, connection: Any) -> int:
        self._alone("deliver", plan)
        self.delivering.set()
        assert self.may_deliver.wait(10)
        self.images.add(str(plan.image.config_blob.digest))
        return 7

    def start(self, plan: Plan, connection: Any, streams: Any) -> FakeContainer:
        self._alone("start", plan)
        if str(plan.image.config_blob.digest) not in self.images:
            raise EngineError("no such image")
        return FakeContainer()

    def discard(self, plan: Plan, connection: Any, *, image: bool = True) -> None:
        self._alone("discard", plan)
        if self.fails:
            raise EngineError("it will not go")
        if image:
            self.images.discard(str(plan.image.config_blob.digest))

    def _alone(self, what: str, plan: Plan) -> None:
        assert self.at_once.acquire(blocking=False), "two at a time"
        time.sleep(0.01)
        self.notes.append(f"{what} {plan.workload.name}")
        self.at_once.release()


class FakeContainer:
    def __init__(self) -> None:
        self._over = threading.Event()
        self.runtime = SimpleNamespace(signal=lambda number: "true")

    def reading(self, timeout: float) -> ContainerReading:
        return SimpleNamespace(pid=1)  # type: ignore[return-value]

    def release(self) -> None:
        pass

    def wait(self) -> int:
        assert self._over.wait(20)
        return 0

    def usage(self) -> Usage:
        return Usage()

    def kill(self) -> None:
        self._over.set()


class FakeWire:
    def __init__(self) -> None:
        self.taken: set[str] = set()

    def reserve(self, plan: Plan) -> tuple[()]:
        self.taken.add(plan.run_id)
        return ()

    def lay(self, plan: Plan) -> None:
        pass

    def attach(self, plan: Plan, pid: int) -> None:
        pass

    def detach(self, plan: Plan) -> None:
        self.taken.discard(plan.run_id)


class World:
    """Services of a tenant's guest, of which there is only the directory."""

    def __init__(self, directories: StateDirectories, guest: GuestDirectory, plan: Plan) -> None:
        self.guest, self.plan = guest, plan
        self.engine, self.wire = FakeEngine(), FakeWire()
        self.runs = Runs(directories.runs)
        self.journal: list[tuple[str, str, str]] = []
        live = SimpleNamespace(
            directory=guest,
            order=SimpleNamespace(plan=replace(plan.guest, ssh_ports=3)),
            connection=self._connection,
            turn=threading.Lock(),
            lost=threading.Event(),
            paused=False,
        )
        around = Surroundings(
            self.runs, self._tell, self.wire, prepare=lambda _: None, conclude=lambda _: None
        )
        self.services = Services(live, around, self.runs, own=False)  # type: ignore[arg-type]

    def _connection(self, number: int = 0) -> Any:
        def execute(command: str) -> Any:
            raise ChannelError("there is no guest")

        return SimpleNamespace(execute=execute)

    def _tell(self, event: str, fields: Any) -> None:
        self.journal.append((event, fields.get("run", ""), fields.get("clean", "")))

    def enter(self, name: str, *, claimed: bool = True, **fields: Any) -> Any:
        intent = intent_of(self.guest, name)
        client = claim_container(self.guest.path, intent) if claimed else None
        workload = replace(self.plan.workload, name=name)
        plan = replace(self.plan, run_id=intent.run_id, workload=workload)
        known = {"guest": self.guest.intent.run_id, "tenant": "acme", "state": RunState.CREATED}
        record = a_record(intent.run_id, name, **{**known, **fields})
        try:
            return self.services.add(plan, record)
        finally:
            if client is not None:
                client.release()

    def start(self, name: str) -> Any:
        service = self.enter(name)
        service.wait_started()
        return service

    def end(self, service: Any) -> None:
        service.controls.asked_to_stop.set()
        service.controls.contained.kill()
        until(lambda: service not in self.services.all())
        until(lambda: ("run.end", service.plan.run_id) in [entry[:2] for entry in self.journal])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def world(
    directories: StateDirectories,
    guest: GuestDirectory,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    made = World(directories, guest, plan)
    monkeypatch.setattr("vmrun.supervisor.contained.make_engine", lambda *_, **__: made.engine)
    monkeypatch.setattr("vmrun.supervisor.contained.check_container", lambda *_: ())
    return made


def test_an_image_goes_with_the_last_container_that_uses_it(world: World) -> None:
    first, second = world.start("first"), world.start("second")
    world.end(first)
    assert world.engine.images
    world.end(second)
    assert world.engine.images == set()
    assert world.engine.notes == [
        "deliver first", "start first", "deliver second", "start second",
        "discard first", "discard second",
    ]  # fmt: skip


def test_an_image_stays_for_a_container_that_is_only_coming(world: World) -> None:
    first = world.start("first")
    world.engine.delivering.clear()
    world.engine.may_deliver.clear()
    second = world.enter("second")
    assert world.engine.delivering.wait(10)
    first.controls.asked_to_stop.set()
    first.controls.contained.kill()
    world.engine.may_deliver.set()
    second.wait_started()
    until(lambda: "discard first" in world.engine.notes)
    assert world.engine.images
    world.end(second)


def test_many_come_and_go_one_at_a_time(world: World) -> None:
    services = [world.enter(f"c{number}") for number in range(9)]
    for service in services:
        service.wait_started()
    threads = [threading.Thread(target=world.end, args=(service,)) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.services.all() == ()
    assert world.engine.images == set()


def test_containers_are_spread_over_the_connections(world: World) -> None:
    services = [world.start(f"c{number}") for number in range(6)]
    used = [service.controls.contained._number for service in services]
    assert used == [0, 1, 2, 0, 1, 2]
    world.end(services[1])
    assert world.start("next").controls.contained._number == 1


def test_what_an_ended_one_held_on_the_host_is_free(
    world: World, directories: StateDirectories
) -> None:
    service = world.start("web")
    assert [i.name for i in alive(directories) if i.guest] == ["web"]
    assert world.wire.taken == {service.plan.run_id}
    world.end(service)
    assert [i for i in alive(directories) if i.guest] == []
    assert world.wire.taken == set()
    assert ("run.end", service.plan.run_id, "true") in world.journal
    record = world.runs.read(service.plan.run_id)
    assert record is not None
    assert record.state is RunState.EXITED


def test_what_cannot_be_cleared_away_is_said(world: World) -> None:
    service = world.start("web")
    world.engine.fails = True
    world.end(service)
    assert ("run.end", service.plan.run_id, "false") in world.journal
    record = world.runs.read(service.plan.run_id)
    assert record is not None
    assert record.error == "it will not go"


def test_one_that_was_not_planned_for_this_guest_does_not_start(world: World) -> None:
    with pytest.raises(StateError, match="was not planned for this guest"):
        world.enter("web", guest="0" * 12)
    with pytest.raises(StateError, match="has no directory"):
        world.enter("web", claimed=False)
    assert world.engine.notes == []
    assert world.wire.taken == set()


def test_a_name_is_had_once_and_the_second_leaves_nothing(
    world: World, directories: StateDirectories
) -> None:
    world.start("web")
    with pytest.raises(NameInUse):
        world.enter("web")
    assert len(world.wire.taken) == 1
    assert len([i for i in alive(directories) if i.guest]) == 1


def test_one_that_is_stopped_while_it_comes_never_starts(world: World) -> None:
    world.engine.may_deliver.clear()
    service = world.enter("web")
    assert world.engine.delivering.wait(10)
    service.controls.asked_to_stop.set()
    world.engine.may_deliver.set()
    until(lambda: world.services.all() == ())
    assert "start web" not in world.engine.notes
    record = world.runs.read(service.plan.run_id)
    assert record is not None
    assert record.error == "it was stopped before it had started"


def test_a_guest_that_ends_is_not_tidied_first(world: World) -> None:
    service = world.start("web")
    world.services.end()
    threading.Timer(0.2, service.controls.contained.kill).start()
    world.services.stop_all()
    assert "discard web" not in world.engine.notes
    with pytest.raises(StateError, match="the guest is ending"):
        world.enter("late")


# What is part of a guest from its creation.


def test_disks_are_those_that_the_guest_was_started_with(plan: Plan, tmp_path: Path) -> None:
    from tests.unit.test_planner import IDENTITY, TREE
    from vmrun.planning.planner import make_plan
    from vmrun.policy.profiles import PROFILES

    workload = replace(plan.workload, command=("/bin/sh",), limits=Limits(64 * MIB, 1.0, 64, 64))
    image = replace(plan.image, tree=TREE)
    known: dict[str, Any] = {
        "image": image,
        "base": plan.base,
        "host": plan.host,
        "profile": PROFILES[workload.profile],
        "identity": IDENTITY,
        "guest": replace(plan.guest, ssh_ports=4),
    }
    made = make_plan(workload, **known)
    assert made.guest.name == plan.guest.name
    assert made.guest.ssh_ports == 4
    assert made.guest.memory.guest == plan.guest.memory.guest
    assert made.guest.memory.workload == 64 * MIB
    with pytest.raises(UsageError) as unusable:
        make_plan(replace(workload, storage=Storage(scratch=1 << 30)), **known)
    assert unusable.value.hint == "add --own-guest"
    late = replace(workload, tenant="acme", storage=Storage(volumes=(NamedVolume("db", "/db"),)))
    with pytest.raises(StateError, match="'db' was made after the guest of tenant 'acme'") as error:
        make_plan(late, **known)
    assert error.value.hint == "vmrun tenant stop acme; vmrun tenant start acme"
    disks = plan_tenant_disks(["db", "other"], tenant="acme", uuid="u", directory=tmp_path)
    known["guest"] = replace(plan.guest, disks=disks)
    (bind,) = make_plan(late, **known).container.binds
    (shared,) = shared_volumes(late.storage, IDENTITY.run_id)
    assert (bind.source, bind.target, bind.read_only) == (shared.at, "/db", False)
    assert shared.content != shared.at


def test_a_volume_is_refused_beyond_the_quota(directories: StateDirectories) -> None:
    must = Shares(directories, "acme").must_have_room
    tenant = TenantStore(directories.tenants).get("acme")
    must(tenant, 1 << 30)
    with pytest.raises(Refused, match=r"0 B of 1\.0 GiB in use"):
        must(tenant, (1 << 30) + 1)
