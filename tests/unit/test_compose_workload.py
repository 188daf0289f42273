"""Services as workloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compose.project import project, service
from vmrun.compose.workload import to_workload, workload_name
from vmrun.image.reference import parse_reference
from vmrun.model.network import Allow, Publish
from vmrun.model.service import HealthCheck, RestartPolicy, RestartWhen, ServiceOptions
from vmrun.model.storage import HostDirectory, NamedVolume, Secret, Storage
from vmrun.model.workload import EngineName, Limits, ProfileName, TmpfsMount, Workload

DEFAULTS = Workload(
    image=parse_reference("registry.example.com/none:1"),
    env=(("NOT", "taken"),),
    limits=Limits(memory=128 << 20, cpus=1.0, pids=128, files=1024),
    tenant="from-options",
    profile=ProfileName.RESTRICTED,
    engine=EngineName.DOCKER,
    connect="embedded",
    interactive=True,
)
FULL = """
name: shop
x-vmrun: {tenant: acme, profile: healthcare}
services:
  Web_1:
    image: registry.example.com/web:1
    command: [serve]
    environment: {A: 1}
    ports: ["8080:80"]
    x-vmrun: {allow: ["api.example.com:443"]}
    volumes: [data:/data, ./conf:/conf:ro]
    secrets: [key]
    tmpfs: /run
    mem_limit: 64m
    cpus: 0.5
    healthcheck: {test: [CMD, check]}
    restart: always
    stop_signal: SIGINT
    stop_grace_period: 30s
    user: "5"
    working_dir: /srv
    read_only: false
    cap_add: [NET_BIND_SERVICE]
    labels: {team: a}
volumes: {data: }
secrets: {key: {file: ./key}}
"""


def test_all_that_a_service_says_is_in_its_workload() -> None:
    found = project(FULL)
    assert to_workload(found, found.services[0], DEFAULTS) == Workload(
        image=parse_reference("registry.example.com/web:1"),
        command=("serve",),
        env=(("A", "1"),),
        workdir="/srv",
        user="5",
        hostname="web-1",
        tmpfs=(TmpfsMount("/run"),),
        read_only=False,
        cap_add=("CAP_NET_BIND_SERVICE",),
        limits=Limits(memory=64 << 20, cpus=0.5, pids=128, files=1024),
        name="shop-web-1",
        tenant="acme",
        profile=ProfileName.HEALTHCARE,
        engine=EngineName.DOCKER,
        connect="embedded",
        publish=(Publish("127.0.0.1", 8080, 80),),
        allow=(Allow("api.example.com", (443,)),),
        storage=Storage(
            directories=(HostDirectory(Path("/srv/shop/conf"), "/conf"),),
            volumes=(NamedVolume("shop_data", "/data"),),
            secrets=(Secret("key", source=Path("/srv/shop/key")),),
        ),
        service=ServiceOptions(
            restart=RestartPolicy(RestartWhen.ALWAYS),
            health=HealthCheck(("check",)),
            stop_signal="SIGINT",
            stop_timeout=30.0,
        ),
        labels=(
            ("team", "a"),
            ("vmrun.compose.project", "shop"),
            ("vmrun.compose.service", "Web_1"),
        ),
    )


def test_what_a_file_does_not_say_is_the_options() -> None:
    found = project("name: a\nservices: {web: {image: r.example.com/a}}\n")
    workload = to_workload(found, found.services[0], DEFAULTS)
    assert (workload.tenant, workload.profile) == ("from-options", ProfileName.RESTRICTED)
    assert workload.limits == DEFAULTS.limits
    assert workload.env == ()
    assert workload.read_only is None
    assert not workload.interactive


@pytest.mark.parametrize(("lines", "entrypoint", "command"), [
    ([], None, ()),
    (["command: a b"], None, ("a", "b")),
    (["entrypoint: a b"], "a", ("b",)),
    (["entrypoint: a b", "command: c d"], "a", ("b", "c", "d")),
    (["entrypoint: []", "command: c d"], "c", ("d",)),
    (["entrypoint: [a]", "command: []"], "a", ()),
])  # fmt: skip
def test_commands(lines: list[str], entrypoint: str | None, command: tuple[str, ...]) -> None:
    found = project("name: a\nservices: {web: {image: r.example.com/a}}\n")
    workload = to_workload(found, service(*lines), DEFAULTS)
    assert (workload.entrypoint, workload.command) == (entrypoint, command)


def test_names_are_those_of_runs() -> None:
    found = project(FULL)
    assert workload_name(found, found.services[0]) == "shop-web-1"
