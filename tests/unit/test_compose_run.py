"""Bringing a project up and down: the order, what it waits for, and what it leaves alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from vmrun.compose.parse import parse_project
from vmrun.model.errors import DeadlineExceeded, StateError, UsageError
from vmrun.model.network import NetworkPlan
from vmrun.model.run_record import Health, RunRecord, RunState
from vmrun.model.workload import Workload
from vmrun.policy.egress import parse_allow
from vmrun.run.compose import Runner, check_volumes, down, up
from vmrun.run.directories import StateDirectories

SHOP = """
services:
  web:
    image: oci:/images/web:1
    depends_on:
      db: {condition: service_healthy}
      setup: {condition: service_completed_successfully}
  setup:
    image: oci:/images/setup:1
    depends_on: [db]
  db:
    image: oci:/images/db:1
    healthcheck: {test: [CMD, "true"]}
  lone:
    image: oci:/images/lone:1
    network_mode: none
"""


class NoFiles:
    def read(self, path: Path, limit: int) -> bytes | None:
        return None

    def real(self, path: Path) -> Path:
        return path


def project(text: str = SHOP, name: str = "shop"):  # type: ignore[no-untyped-def]
    return parse_project(
        text.encode(),
        path=Path("/shop/compose.yaml"),
        environment={},
        files=NoFiles(),  # type: ignore[arg-type]
        parse_allow=parse_allow,
        name=name,
    )


@dataclass
class Guest:
    """Stands below the unit: starts and stops nothing but records."""

    health: Health = Health.HEALTHY
    ends_with: dict[str, int] = field(default_factory=dict)
    records: dict[str, RunRecord] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    networks: dict[str, NetworkPlan | None] = field(default_factory=dict)
    ids: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    def start(self, workload: Workload, network: NetworkPlan | None) -> RunRecord:
        service = dict(workload.labels)["vmrun.compose.service"]
        self.log.append(f"start {service}")
        self.networks[service] = network
        status = self.ends_with.get(service)
        record = RunRecord(
            run_id=f"{next(iter(self.ids)):012x}",
            name=workload.name or "",
            tenant=workload.tenant,
            guest="g" * 12,
            image=str(workload.image),
            image_digest="",
            command="",
            engine="crun",
            profile="restricted",
            accelerator="tcg",
            isolated=False,
            base="",
            state=RunState.RUNNING if status is None else RunState.EXITED,
            created=time.time(),
            health=self.health if workload.service.health else Health.NONE,
            exit_status=status,
            labels=workload.labels,
            address=network.address if network else "",
        )
        self.records[record.run_id] = record
        return record

    def stop(self, record: RunRecord) -> None:
        self.log.append(f"stop {dict(record.labels)['vmrun.compose.service']}")
        del self.records[record.run_id]

    def runner(self, patience: float = 1.0) -> Runner:
        return Runner(
            start=self.start,
            stop=self.stop,
            look=lambda: list(self.records.values()),
            say=lambda service, what: None,
            patience=patience,
        )


@pytest.fixture
def defaults() -> Workload:
    return Workload(image=project().services[0].image, tenant="acme")


def test_each_service_starts_when_what_it_needs_is_ready(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(), defaults, guest.runner())
    assert guest.log == ["start db", "start lone", "start setup", "start web"]


def test_services_of_one_network_know_each_other_and_a_lone_one_nobody(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(), defaults, guest.runner())
    web = guest.networks["web"]
    assert web is not None
    assert {name for name, _ in web.names} == {"web", "db", "setup"}
    assert guest.networks["lone"] is None


def test_what_runs_as_the_file_says_is_left_alone(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(), defaults, guest.runner())
    guest.log.clear()
    up(project(), defaults, guest.runner())
    assert guest.log == []


def test_what_has_changed_is_made_anew_and_nothing_else(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(), defaults, guest.runner())
    guest.log.clear()
    up(project(SHOP.replace("images/web:1", "images/web:2")), defaults, guest.runner())
    assert guest.log == ["stop web", "start web"]


def test_a_service_more_does_not_disturb_the_others(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(), defaults, guest.runner())
    guest.log.clear()
    more = SHOP + "  cache:\n    image: oci:/images/cache:1\n"
    up(project(more), defaults, guest.runner())
    assert guest.log == ["start cache"]


def test_one_that_has_failed_is_started_again(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0, "lone": 3})
    up(project(), defaults, guest.runner())
    guest.log.clear()
    up(project(), defaults, guest.runner())
    assert guest.log == ["stop lone", "start lone"]


def test_a_dependency_that_fails_stops_what_needs_it(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 4})
    with pytest.raises(StateError, match="setup ended with status 4") as caught:
        up(project(), defaults, guest.runner())
    assert "compose logs setup" in caught.value.hint
    assert "start web" not in guest.log


@pytest.mark.parametrize(
    ("health", "error"),
    [(Health.UNHEALTHY, StateError), (Health.STARTING, DeadlineExceeded)],
)
def test_a_dependency_that_is_not_healthy(
    defaults: Workload, health: Health, error: type[Exception]
) -> None:
    guest = Guest(health=health, ends_with={"setup": 0})
    with pytest.raises(error, match="db"):
        up(project(), defaults, guest.runner(patience=0.3))
    assert "start web" not in guest.log


def test_a_dependency_that_was_removed_meanwhile(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    original = guest.start

    def start(workload: Workload, network: NetworkPlan | None) -> RunRecord:
        record = original(workload, network)
        if dict(workload.labels)["vmrun.compose.service"] == "setup":
            guest.records = {
                key: value for key, value in guest.records.items() if "db" not in value.name
            }
        return record

    with pytest.raises(StateError, match="db is gone"):
        up(project(), defaults, replace(guest.runner(), start=start))


def test_only_what_was_asked_for_and_what_it_needs(defaults: Workload) -> None:
    guest = Guest()
    up(project(), defaults, guest.runner(), only=["setup"])
    assert guest.log == ["start db", "start setup"]
    with pytest.raises(UsageError, match="no service 'nobody'"):
        up(project(), defaults, guest.runner(), only=["nobody"])


def test_down_goes_the_other_way_and_takes_strangers_along(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(SHOP + "  old:\n    image: oci:/images/old:1\n"), defaults, guest.runner())
    guest.log.clear()
    assert down(project(), guest.runner()) == ("old", "web", "setup", "lone", "db")
    assert guest.log == ["stop old", "stop web", "stop setup", "stop lone", "stop db"]
    assert down(project(), guest.runner()) == ()


def test_projects_do_not_touch_each_other(defaults: Workload) -> None:
    guest = Guest(ends_with={"setup": 0})
    up(project(), defaults, guest.runner())
    up(project(name="other"), defaults, guest.runner())
    subnets = {
        (dict(record.labels)["vmrun.compose.project"], record.address.split(".")[2])
        for record in guest.records.values()
        if record.address
    }
    assert len({subnet for _, subnet in subnets}) == 2
    down(project(), guest.runner())
    assert {dict(r.labels)["vmrun.compose.project"] for r in guest.records.values()} == {"other"}


def test_a_volume_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    directories = StateDirectories(tmp_path / "guests", tmp_path / "cache", (tmp_path,))
    text = SHOP.replace("db:1", "db:1\n    volumes: ['data:/data', 'log:/log']", 1)
    shop = project(text + "volumes: {data: , log: {name: logs}}\n")
    with pytest.raises(
        StateError, match="tenant 'acme' has no volume 'logs', 'shop_data'"
    ) as error:
        check_volumes(shop, (), "acme", directories)
    assert error.value.hint == (
        "vmrun volume create logs --tenant acme --size 1g --passphrase-file FILE; "
        "vmrun volume create shop_data --tenant acme --size 1g --passphrase-file FILE; "
        "vmrun tenant start acme"
    )
    check_volumes(shop, ("lone",), "acme", directories)
