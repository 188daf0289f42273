"""Networks of a project: who is on which, with which address and names."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compose.project import project, refused, service, service_refused
from vmrun.compose.model import Network, Project, Service
from vmrun.compose.networks import lay_out, visible, wire
from vmrun.image.reference import parse_reference
from vmrun.model.errors import UsageError
from vmrun.model.network import Allow, NetworkPlan, Publish

IMAGE = parse_reference("registry.example.com/a:1")
THREE = """
name: shop
services:
  web: {image: registry.example.com/a:1, networks: [front], ports: ["8080:80"]}
  App_1:
    image: registry.example.com/a:1
    networks: {front: {aliases: [api, Backend]}}
    x-vmrun: {allow: ["api.example.com:443", "b.example.com:8443"]}
  db: {image: registry.example.com/a:1, networks: [back]}
  alone: {image: registry.example.com/a:1, networks: [closed]}
  off: {image: registry.example.com/a:1, network_mode: none}
networks:
  front:
  back:
  closed: {internal: true}
"""


def test_services_are_on_the_default_network_unless_they_name_one() -> None:
    assert service().networks == ("default",)
    assert project(THREE).networks == (
        Network("default"), Network("front"), Network("back"), Network("closed", internal=True),
    )  # fmt: skip


def test_who_sees_whom() -> None:
    services = project(THREE).services
    seen = {item.name: visible(item, services) for item in services}
    assert seen == {"web": ("App_1",), "App_1": ("web",), "db": (), "alone": (), "off": ()}


def test_a_layout_is_of_the_networks_that_are_used() -> None:
    layouts = lay_out(project(THREE))
    assert [layout.name for layout in layouts] == ["shop_front", "shop_back", "shop_closed"]
    front = layouts[0]
    assert [name for name, _ in front.members] == ["web", "App_1"]
    assert [name for name, _ in front.names] == ["web", "app_1", "app-1", "api", "backend"]
    assert len({address for name, address in front.names if name != "web"}) == 1
    assert front.listen == (443, 8443)


def test_addresses_are_within_their_network() -> None:
    for layout in lay_out(project(THREE)):
        subnet = ipaddress.ip_network(f"{layout.gateway}/24", strict=False)
        assert subnet.subnet_of(ipaddress.ip_network("10.88.0.0/16"))
        assert layout.gateway == str(subnet[1])
        addresses = [address for _, address in layout.members]
        assert len(set(addresses)) == len(addresses)
        for address in addresses:
            assert ipaddress.ip_address(address) in list(subnet.hosts())[1:]


def test_wires() -> None:
    found = project(THREE)
    layouts = lay_out(found)
    wires = {item.name: wire(item, layouts) for item in found.services}
    front = layouts[0]
    assert wires["web"] == NetworkPlan(
        network="shop_front",
        address=front.address("web"),
        gateway=front.gateway,
        prefix=24,
        publish=(Publish("127.0.0.1", 8080, 80),),
        names=front.names,
        listen=(443, 8443),
    )
    app = wires["App_1"]
    assert app is not None
    assert app.allow == (Allow("api.example.com", (443,)), Allow("b.example.com", (8443,)))


@pytest.mark.parametrize("name", ["db", "alone", "off"])
def test_who_can_reach_nobody_has_no_wire(name: str) -> None:
    found = project(THREE)
    chosen = next(item for item in found.services if item.name == name)
    assert wire(chosen, lay_out(found)) is None


def test_one_service_alone_that_publishes_has_a_wire() -> None:
    found = project("name: a\nservices:\n  web: {image: a.example.com/b, ports: ['80']}\n")
    assert wire(found.services[0], lay_out(found)) is not None


def test_addresses_do_not_depend_on_the_order_of_the_file() -> None:
    one = _project(["a", "b", "c", "d"])
    other = _project(["d", "b", "a", "c"])
    assert sorted(lay_out(one)[0].members) == sorted(lay_out(other)[0].members)


def test_a_service_more_moves_the_others_only_where_numbers_meet() -> None:
    few = [f"s{n}" for n in range(10)]
    before = dict(lay_out(_project(few))[0].members)
    after = dict(lay_out(_project([*few, "new"]))[0].members)
    assert sum(before[name] != after[name] for name in few) <= 1


def test_subnets_of_other_projects_are_left_alone() -> None:
    taken: set[int] = set()
    for n in range(255):
        layout = lay_out(_project(["a"], name=f"p{n}"), taken)[0]
        assert layout.subnet not in taken
        taken.add(layout.subnet)
    assert taken == set(range(1, 256))
    with pytest.raises(UsageError, match="0 can have an address"):
        lay_out(_project(["a"], name="one-more"), taken)


@given(st.sets(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=64))
def test_every_member_has_an_address_of_its_own(names: set[str]) -> None:
    members = lay_out(_project(sorted(names)))[0].members
    assert {name for name, _ in members} == names
    assert len({address for _, address in members}) == len(names)


def _project(names: list[str], name: str = "p") -> Project:
    found = project(f"name: {name}\nservices: {{a: {{image: a.example.com/b}}}}\n")
    services = tuple(Service(item, IMAGE) for item in names)
    return Project(name, found.folder, services, found.networks)


# --- what is refused ---------------------------------------------------------------------------

TWO = "networks: {a: , b: }\n"


@pytest.mark.parametrize(("lines", "message"), [
    (["networks: [a, b]"], "4: services.web.networks: 2 networks: a service is on exactly one"),
    (["networks: []"], "4: services.web.networks: 0 networks: a service is on exactly one"),
    (["networks: {a: , b: {aliases: [x]}}"], "4: services.web.networks: 2 networks"),
    (["networks:", "  - c"], "5: services.web.networks[0]: there is no network 'c'"),
    (["networks:", "  - a", "  - a"], "6: services.web.networks[1]: 'a' stands there twice"),
    (["networks:", "  a:", "    ipv4_address: 10.0.0.1"],
     "6: services.web.networks.a.ipv4_address: not supported: vmrun chooses the addresses"),
    (["networks:", "  a:", "    aliases: [a.b]"],
     "6: services.web.networks.a.aliases[0]: not a host name: 'a.b'"),
    (["networks:", "  a:", "    alias: [b]"],
     "6: services.web.networks.a.alias: unknown key 'alias'; did you mean 'aliases'?"),
    (["network_mode: host"], "4: services.web.network_mode: 'host' is not supported: a guest has"),
    (["network_mode: service:db"], "4: services.web.network_mode: 'service:db' is not supported"),
    (["networks: [a]", "network_mode: none"], "5: services.web.network_mode: there are 'networks'"),
    (["network_mode: none", "ports: ['80']"],
     "5: services.web.ports: cannot be, because network_mode is none"),
    (["network_mode: none", "x-vmrun: {allow: [a.example.com]}"],
     "5: services.web.x-vmrun: cannot be, because network_mode is none"),
])  # fmt: skip
def test_networks_of_a_service(lines: list[str], message: str) -> None:
    assert service_refused(*lines, top=TWO).message.startswith(f"compose.yaml:{message}")


def test_nothing_goes_in_or_out_of_an_internal_network() -> None:
    top = "networks: {a: {internal: true}}\n"
    for line, key in (("ports: ['80']", "ports"), ("x-vmrun: {allow: [a.example.com]}", "x-vmrun")):
        error = service_refused("networks: [a]", line, top=top)
        assert error.message == (
            f"compose.yaml:5: services.web.{key}: cannot be, because the network 'a' is internal"
        )


@pytest.mark.parametrize(("line", "message"), [
    ("  a: {driver: overlay}", "networks.a.driver: 'overlay' must be one of bridge"),
    ("  a: {external: true}", "networks.a.external: not supported: a project's network"),
    ("  a: {name: other}", "networks.a.name: not supported"),
    ("  a: {ipam: {}}", "networks.a.ipam: not supported: vmrun chooses the addresses"),
    ("  a: {enable_ipv6: true}", "networks.a.enable_ipv6: not supported"),
    ("  a: {internal: maybe}", "networks.a.internal: 'maybe' must be true or false"),
    ("  a: {intern: true}", "networks.a.intern: unknown key 'intern'; did you mean 'internal'?"),
    ("  a: [x]", "networks.a: must be a mapping"),
    ("  'a b': {}", "networks.a b: not a name: 'a b'"),
])  # fmt: skip
def test_networks_of_the_project(line: str, message: str) -> None:
    error = service_refused(top=f"networks:\n{line}\n")
    assert error.message.startswith(f"compose.yaml:5: {message}")


def test_two_services_that_are_one_host_name() -> None:
    for other in ("WEB-1", "web_1"):
        image = "{image: a.example.com/b}"
        text = f"services:\n  web-1: {image}\n  {other}: {image}\n"
        error = refused(text)
        assert error.message == (
            f"compose.yaml:3: services.{other}: 'web-1' and {other!r} are one host name"
        )


def test_an_alias_that_names_another_service() -> None:
    text = (
        "services:\n  web: {image: a.example.com/b, networks: [n]}\n"
        "  app:\n    image: a.example.com/b\n    networks: {n: {aliases: [Web]}}\nnetworks: {n: }\n"
    )
    assert refused(text).message == (
        "compose.yaml:3: services.app: the alias 'Web' names 'web' on the network 'n'"
    )
