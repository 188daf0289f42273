"""The wire of a container as it is planned, and the files by which it learns of it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmrun.model.errors import UsageError
from vmrun.model.image import Reference, Transport
from vmrun.model.network import MOST_PORTS, Allow, NetworkPlan, Publish
from vmrun.model.workload import Workload
from vmrun.network.wire import attach_command, relay_command
from vmrun.planning.network import lay_command, network_files, plan_network, remove_command

RUN = "0123456789ab"
SHARED = NetworkPlan(
    network="shop_default",
    address="10.88.7.3",
    gateway="10.88.7.1",
    prefix=24,
    names=(("web", "10.88.7.3"), ("db", "10.88.7.4")),
)


def workload_with(**fields: Any) -> Workload:
    return Workload(image=Reference(Transport.OCI, "image"), **fields)


def test_a_wire_is_there_for_those_who_need_one() -> None:
    assert plan_network(workload_with(), RUN, None) is None
    publish = (Publish("127.0.0.1", 0, 80),)
    plan = plan_network(workload_with(publish=publish), RUN, None)
    assert plan is not None
    assert (plan.network, plan.publish, plan.allow, plan.listen) == (RUN, publish, (), ())
    allow = (Allow("registry.example.com", (80, 443)), Allow("*.example.org", (443, 8443)))
    plan = plan_network(workload_with(allow=allow), RUN, None)
    assert plan is not None
    assert (plan.allow, plan.listen) == (allow, (80, 443, 8443))


def test_a_place_on_a_shared_network_counts() -> None:
    mine = workload_with(allow=(Allow("registry.example.com", (80,)),))
    assert plan_network(mine, RUN, SHARED) is SHARED


def test_what_is_planned_can_be_laid() -> None:
    allow = tuple(Allow("example.com", (port,)) for port in range(1000, 1000 + MOST_PORTS))
    plan = plan_network(workload_with(allow=allow), RUN, None)
    assert plan is not None
    assert relay_command(plan.gateway, plan.prefix, plan.listen)
    assert attach_command(2, 3, plan.address, plan.prefix, plan.gateway)


def test_more_ports_than_a_relay_takes_are_refused_before_there_is_a_guest() -> None:
    allow = tuple(Allow("example.com", (port,)) for port in range(1000, 1001 + MOST_PORTS))
    with pytest.raises(UsageError, match=f"names {MOST_PORTS + 1} different ports"):
        plan_network(workload_with(allow=allow), RUN, None)


def lay(plan: NetworkPlan, hostname: str, root: Path) -> dict[str, str]:
    """The files, written by a real shell."""
    command = lay_command(plan, hostname).replace("/run/vmrun-net", f"{root}/net")
    subprocess.run(["sh", "-c", command], check=True, timeout=10)
    return {Path(b.target).name: Path(b.source.replace("/run/vmrun-net", f"{root}/net")).read_text()
            for b in network_files(plan)}  # fmt: skip


def test_the_files_tell_of_the_gateway_and_of_names(tmp_path: Path) -> None:
    own = plan_network(workload_with(publish=(Publish("127.0.0.1", 0, 80),)), RUN, None)
    assert own is not None
    files = lay(own, "web", tmp_path)
    assert files["hosts"] == "127.0.0.1 localhost\n::1 localhost\n10.88.0.2 web\n"
    assert files["resolv.conf"] == "nameserver 10.88.0.1\noptions attempts:2 timeout:5\n"
    assert lay(SHARED, "ignored", tmp_path)["hosts"].splitlines()[2:] == [
        "10.88.7.3 web", "10.88.7.4 db",
    ]  # fmt: skip


def test_names_are_no_words_of_the_shell(tmp_path: Path) -> None:
    odd = replace(SHARED, network="a b;$(id)", names=(("$(touch /x)'\"", "10.88.7.3"),))
    assert lay(odd, "x", tmp_path)["hosts"].splitlines()[2] == "10.88.7.3 $(touch /x)'\""
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["a b;$(id)"]


def test_removing_takes_the_files_of_that_network_only(tmp_path: Path) -> None:
    lay(SHARED, "x", tmp_path)
    other = replace(SHARED, network="shop_default2")
    lay(other, "x", tmp_path)
    command = remove_command(SHARED).replace("/run/vmrun-net", f"{tmp_path}/net")
    subprocess.run(["sh", "-c", command], check=True, timeout=10)
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["shop_default2"]


def test_the_container_cannot_write_them() -> None:
    assert all(bind.read_only for bind in network_files(SHARED))
