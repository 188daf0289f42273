"""In which order services start and stop."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compose.project import project, refused
from vmrun.compose.model import Dependency, Service
from vmrun.compose.order import closure, cycle, levels, start_order, stop_order
from vmrun.image.reference import parse_reference
from vmrun.model.errors import UsageError

IMAGE = parse_reference("registry.example.com/a:1")


def services(graph: dict[str, list[str]]) -> list[Service]:
    return [
        Service(name, IMAGE, depends_on=tuple(Dependency(other) for other in others))
        for name, others in graph.items()
    ]


def file(graph: dict[str, list[str]]) -> str:
    lines = ["services:"]
    for name, others in graph.items():
        lines += [f"  {name}:", "    image: registry.example.com/a:1"]
        if others:
            lines.append(f"    depends_on: [{', '.join(others)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(("graph", "expected"), [
    ({"a": []}, (("a",),)),
    ({"b": [], "a": []}, (("b", "a"),)),
    ({"web": ["db", "cache"], "db": [], "cache": []}, (("db", "cache"), ("web",))),
    ({"c": ["b"], "b": ["a"], "a": [], "d": []}, (("a", "d"), ("b",), ("c",))),
    ({"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []}, (("a",), ("c", "b"), ("d",))),
])  # fmt: skip
def test_levels(graph: dict[str, list[str]], expected: tuple[tuple[str, ...], ...]) -> None:
    assert levels(services(graph)) == expected
    flat = [name for level in expected for name in level]
    assert list(start_order(services(graph))) == flat
    assert list(stop_order(services(graph))) == flat[::-1]


@pytest.mark.parametrize(("graph", "line", "circle"), [
    ({"a": ["a"]}, 2, "a → a"),
    ({"a": ["b"], "b": ["a"]}, 2, "a → b → a"),
    ({"z": ["a"], "a": ["b"], "b": ["c"], "c": ["a"]}, 5, "a → b → c → a"),
    ({"x": [], "a": ["x", "b"], "b": ["x", "c"], "c": ["a"]}, 4, "a → b → c → a"),
])  # fmt: skip
def test_a_circle_is_an_error_that_shows_it(
    graph: dict[str, list[str]], line: int, circle: str
) -> None:
    error = refused(file(graph))
    name = circle[0]
    assert error.message == f"compose.yaml:{line}: services.{name}: depends on itself: {circle}"


def test_an_unknown_service_is_an_error() -> None:
    error = refused(file({"a": ["b"], "c": []}))
    assert error.message == "compose.yaml:4: services.a.depends_on: there is no service 'b'"
    assert error.hint == "there are a, c"


def test_the_same_service_twice_is_an_error() -> None:
    assert refused(file({"a": ["b", "b"], "b": []})).message == (
        "compose.yaml:4: services.a.depends_on[1]: 'b' stands there twice"
    )


def test_a_service_and_what_it_needs() -> None:
    found = closure(services({"a": ["b"], "b": ["c"], "c": [], "d": ["a"]}), ["b"])
    assert [service.name for service in found] == ["b", "c"]


def test_a_name_that_is_no_service_is_an_error() -> None:
    with pytest.raises(UsageError, match="there is no service 'x'") as caught:
        closure(services({"b": [], "a": []}), ["a", "x"])
    assert caught.value.hint == "there are a, b"


def test_a_chain_as_long_as_a_file_may_be() -> None:
    graph = {f"s{n}": [f"s{n + 1}"] for n in range(63)} | {"s63": []}
    assert start_order(project(file(graph)).services)[0] == "s63"
    assert "s0 → s1 → " in refused(file(graph | {"s63": ["s0"]})).message


GRAPHS = st.integers(1, 8).flatmap(
    lambda size: st.fixed_dictionaries(
        {
            f"s{n}": st.lists(st.sampled_from([f"s{k}" for k in range(size)]), unique=True)
            for n in range(size)
        }
    )
)


@given(GRAPHS)
def test_every_graph_has_an_order_or_a_circle(graph: dict[str, list[str]]) -> None:
    found = services(graph)
    circle = cycle(found)
    if circle:
        assert circle[0] == circle[-1]
        assert all(after in graph[before] for before, after in pairwise(circle))
        return
    order = start_order(found)
    assert sorted(order) == sorted(graph)
    for name, others in graph.items():
        assert all(order.index(other) < order.index(name) for other in others)
