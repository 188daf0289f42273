"""--publish as docker writes it; what is no port of the host is refused by name."""

from __future__ import annotations

import pytest

from vmrun.model.errors import UsageError
from vmrun.model.network import Publish
from vmrun.planning.publish import parse_publish, parse_publishes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", Publish("127.0.0.1", 8080, 80)),
        ("8080:80/tcp", Publish("127.0.0.1", 8080, 80)),
        ("80", Publish("127.0.0.1", 0, 80)),
        (":80", Publish("127.0.0.1", 0, 80)),
        ("0:80", Publish("127.0.0.1", 0, 80)),
        ("0.0.0.0:8080:80", Publish("0.0.0.0", 8080, 80)),
        ("127.0.0.2::80", Publish("127.0.0.2", 0, 80)),
        ("[::1]:8080:80", Publish("::1", 8080, 80)),
        ("[0:0::1]:1:65535", Publish("::1", 1, 65535)),
    ],
)
def test_what_docker_takes(text: str, expected: Publish) -> None:
    assert parse_publish(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "a", "8080:a", "8080:80/udp", "8080:80/sctp", "8080:0", "8080:65536",
        "65536:80", "999999:80", "1.2.3:80:80", "1.2.3.4:80", "256.1.1.1:80:80", "::1:80:80",
        "localhost:80:80", "8080:80:80:80", "8080-8081:80", "-1:80", "80 ", "８０:80", "[x]:80:80",
    ],
)  # fmt: skip
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_publish(text)
    assert f"--publish {text}" in caught.value.message
    assert caught.value.hint


def test_a_port_of_the_host_is_published_once() -> None:
    assert len(parse_publishes(["0:80", "0:80", "127.0.0.2:8080:80", "8080:80"])) == 4
    with pytest.raises(UsageError, match="twice"):
        parse_publishes(["8080:80", "8080:81"])
    with pytest.raises(UsageError, match="more than 64"):
        parse_publishes(["80"] * 65)
