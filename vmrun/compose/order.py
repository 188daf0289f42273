"""In which order services start and stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmrun.compose.model import Service
from vmrun.model.errors import UsageError


def levels(services: Iterable[Service]) -> tuple[tuple[str, ...], ...]:
    """Names of services, level by level: those of one level depend on earlier levels only and may
    start at the same time. Within a level they stand as in the file. Of services whose
    dependencies :func:`cycle` and the reader have checked."""
    waiting = {service.name: needs(service) for service in services}
    found: list[tuple[str, ...]] = []
    started: set[str] = set()
    while waiting:
        level = tuple(name for name, wanted in waiting.items() if wanted <= started)
        if not level:
            raise AssertionError(f"not checked for cycles: {sorted(waiting)}")
        found.append(level)
        started.update(level)
        for name in level:
            del waiting[name]
    return tuple(found)


def start_order(services: Iterable[Service]) -> tuple[str, ...]:
    """Names of services, each after those that it depends on."""
    return tuple(name for level in levels(services) for name in level)


def stop_order(services: Iterable[Service]) -> tuple[str, ...]:
    """Names of services, each before those that it depends on."""
    return tuple(reversed(start_order(services)))


def closure(services: Iterable[Service], names: Iterable[str]) -> tuple[Service, ...]:
    """The services of those names and all that they depend on, in the order of the file. Raises
    :class:`UsageError` for a name that is none."""
    known = {service.name: service for service in services}
    wanted: set[str] = set()
    todo = list(names)
    for name in todo:
        if name not in known:
            raise UsageError(
                f"there is no service {name[:80]!r}", hint=f"there are {', '.join(sorted(known))}"
            )
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo.extend(needs(known[name]))
    return tuple(service for name, service in known.items() if name in wanted)


def cycle(services: Iterable[Service]) -> tuple[str, ...]:
    """A circle of dependencies, its first name repeated at the end; empty if there is none."""
    graph = {service.name: [item.service for item in service.depends_on] for service in services}
    done: set[str] = set()
    for start in graph:
        path = _circle(graph, start, done)
        if path:
            return path
    return ()


def _circle(graph: Mapping[str, list[str]], start: str, done: set[str]) -> tuple[str, ...]:
    """Depth first from ``start``, without recursion: a chain may be as long as the file."""
    if start in done:
        return ()
    path = [start]
    branches = [iter(graph[start])]
    while path:
        following = next(branches[-1], None)
        if following is None:
            done.add(path.pop())
            branches.pop()
        elif following in path:
            return (*path[path.index(following) :], following)
        elif following not in done:
            path.append(following)
            branches.append(iter(graph[following]))
    return ()


def needs(service: Service) -> frozenset[str]:
    """Names of the services that it depends on."""
    return frozenset(dependency.service for dependency in service.depends_on)
