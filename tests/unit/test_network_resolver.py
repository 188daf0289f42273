"""Names are resolved within a deadline, once at a time, and not for ever."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from vmrun.model.errors import DeadlineExceeded, VmrunError
from vmrun.network.resolver import MAX_ADDRESSES, Resolver, system_lookup


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_is_kept_for_a_while() -> None:
    asked: list[str] = []
    clock = Clock()

    def lookup(name: str) -> tuple[str, ...]:
        asked.append(name)
        return ("93.184.216.34",)

    resolver = Resolver(lookup, ttl=30, clock=clock)
    assert resolver("example.com") == resolver("example.com") == ("93.184.216.34",)
    assert asked == ["example.com"]
    clock.now = 31
    resolver("example.com")
    assert len(asked) == 2


def test_absence_is_kept_for_less() -> None:
    asked: list[str] = []
    clock = Clock()

    def lookup(name: str) -> tuple[str, ...]:
        asked.append(name)
        return ()

    resolver = Resolver(lookup, ttl=30, clock=clock)
    assert resolver("example.com") == resolver("example.com") == ()
    clock.now = 7
    resolver("example.com")
    assert len(asked) == 2


def test_a_failure_is_an_error_and_not_kept() -> None:
    answers: list[object] = [OSError("no server"), UnicodeError("label"), ("93.184.216.34",)]

    def lookup(name: str) -> tuple[str, ...]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    resolver = Resolver(lookup)
    for _ in range(2):
        with pytest.raises(VmrunError, match=r"example\.com cannot be resolved"):
            resolver("example.com")
    assert resolver("example.com") == ("93.184.216.34",)


def test_who_hangs_costs_its_place_and_no_more() -> None:
    go = threading.Event()

    def lookup(name: str) -> tuple[str, ...]:
        if name.startswith("slow"):
            go.wait(10)
        return ("93.184.216.34",)

    resolver = Resolver(lookup, timeout=0.2, workers=2)
    start = time.monotonic()
    for name in ("slow1.example.com", "slow2.example.com", "fast.example.com"):
        with pytest.raises(DeadlineExceeded, match=name):
            resolver(name)
    assert time.monotonic() - start < 2
    go.set()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert resolver("fast.example.com") == ("93.184.216.34",)
            break
        except DeadlineExceeded:
            continue
    else:
        pytest.fail("the places were not given back")


def test_who_asks_for_the_same_name_waits_for_one_look_up() -> None:
    asked: list[str] = []
    go = threading.Event()

    def lookup(name: str) -> tuple[str, ...]:
        asked.append(name)
        go.wait(10)
        return ("93.184.216.34",)

    resolver = Resolver(lookup)
    got: list[tuple[str, ...]] = []
    threads = [
        threading.Thread(target=lambda: got.append(resolver("example.com"))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    go.set()
    for thread in threads:
        thread.join(5)
    assert got == [("93.184.216.34",)] * 5
    assert asked == ["example.com"]


def test_memory_is_bounded() -> None:
    asked: list[str] = []

    def lookup(name: str) -> tuple[str, ...]:
        asked.append(name)
        return tuple(f"93.184.216.{n}" for n in range(200))

    resolver = Resolver(lookup, entries=4)
    for n in range(6):
        assert len(resolver(f"a{n}.example.com")) == MAX_ADDRESSES
    resolver("a5.example.com")
    resolver("a0.example.com")
    assert asked == [f"a{n}.example.com" for n in (0, 1, 2, 3, 4, 5, 0)]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ([(2, 1, 6, "", ("93.184.216.34", 0)), (10, 1, 6, "", ("2606:4700::1", 0, 0, 0))],
         ("93.184.216.34", "2606:4700::1")),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), ()),
        (socket.gaierror(socket.EAI_NODATA, "no address"), ()),
    ],
)  # fmt: skip
def test_names_are_absolute(
    monkeypatch: pytest.MonkeyPatch, outcome: object, expected: tuple[str, ...]
) -> None:
    """With the final dot no search domain of this host makes another name of it."""
    asked: list[object] = []

    def getaddrinfo(name: object, *_: object, **__: object) -> object:
        asked.append(name)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert system_lookup("example.com") == expected
    assert asked == ["example.com."]


def test_a_resolver_that_fails_does_not_say_that_there_is_no_such_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def getaddrinfo(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(VmrunError, match="try again"):
        Resolver()("example.com")
