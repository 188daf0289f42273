"""Programs in a network namespace, the real relay, the real multiplexer and the real decisions.

Only the name server of this host and the public servers are stand-ins.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.base_binaries import binaries, guest
from tests.unit.egress_world import PUBLIC, Web, World, tls_context
from tests.wire import LocalProcess, Member, member
from vmrun.network.mux import Mux
from vmrun.policy.egress import ports_of, proxy_environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")

GATEWAY, CONTAINER, OTHER = "10.88.0.1", "10.88.0.2", "10.88.0.3"
HOST = "www.example.com"


class Wired:
    """A container with rules for HOST, another without, and the network of both."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        context: ssl.SSLContext = tls_context(directory)
        self.web, self.secure = Web(), Web(context)
        for server in (self.web, self.secure):
            stack.callback(server.shutdown)
        self.world = World(
            HOST,
            "*.example.org",
            hosts={HOST: [PUBLIC], "inside.example.org": ["169.254.169.254"]},
            servers={(PUBLIC, 80): self.web.port, (PUBLIC, 443): self.secure.port},
            names={"db": OTHER},
        )
        stack.callback(self.world.close)
        listen = ",".join(map(str, ports_of(self.world.rules)))
        self.mux = Mux(
            LocalProcess(binaries() / "guest", "relay", f"{GATEWAY}/24", f"listen={listen}"),
            on_stream=self.world.egress.stream,
            on_datagram=self.world.egress.datagram,
        )
        stack.callback(self.mux.close)
        pid = self.mux.wait_ready(10)
        self.members: dict[str, Member] = {}
        for address in (CONTAINER, OTHER):
            made = self.members[address] = stack.enter_context(member())
            done = guest("attach", str(pid), str(made.pid), f"{address}/24", GATEWAY)
            assert (done.returncode, done.stderr) == (0, b"")
        self.certificate = str(directory / "cert.pem")
        self.resolv = directory / "resolv.conf"
        self.resolv.write_text(f"nameserver {GATEWAY}\n")

    def run(
        self, *command: str, proxies: bool = False, of: str = CONTAINER
    ) -> subprocess.CompletedProcess[str]:
        """A program in a container, whose name server is the gateway."""
        variables = [f"{k}={v}" for k, v in proxy_environment(GATEWAY) if proxies]
        return self.members[of].run(
            "unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"',
            str(self.resolv), "env", *variables, *command,
        )  # fmt: skip

    def curl(
        self, *arguments: str, proxies: bool = False, of: str = CONTAINER
    ) -> subprocess.CompletedProcess[str]:
        return self.run(
            "curl", "-sS", "--max-time", "10", "--cacert", self.certificate, *arguments,
            proxies=proxies, of=of,
        )  # fmt: skip


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    with ExitStack() as stack:
        yield Wired(stack, tmp_path_factory.mktemp("wired"))


@pytest.fixture(autouse=True)
def forgotten(wired: Wired) -> None:
    wired.web.fresh()
    wired.secure.fresh()
    wired.world.connected.clear()


@pytest.mark.parametrize("proxies", [True, False], ids=["proxy", "direct"])
def test_allowed_pages_are_read(wired: Wired, proxies: bool) -> None:
    done = wired.curl(f"http://{HOST}/a", f"https://{HOST}/b", proxies=proxies)
    assert (done.stdout, done.stderr) == (f"{HOST}/a{HOST}/b", "")


def test_through_socks(wired: Wired) -> None:
    for option in ("--socks5", "--socks5-hostname"):
        done = wired.curl(option, f"{GATEWAY}:1080", f"https://{HOST}/c")
        assert (done.stdout, done.stderr) == (f"{HOST}/c", "")


@pytest.mark.parametrize("proxies", [True, False], ids=["proxy", "direct"])
@pytest.mark.parametrize(
    "url",
    ["http://example.net/", "https://example.net/", f"http://{PUBLIC}/", "http://169.254.169.254/",
     f"http://{GATEWAY}/", "http://inside.example.org/", f"http://{HOST}:8080/", "http://[::1]:80/"],
)  # fmt: skip
def test_nothing_else_is(wired: Wired, url: str, proxies: bool) -> None:
    done = wired.curl("--fail", url, proxies=proxies)
    assert done.returncode != 0
    assert done.stdout == ""
    assert wired.world.connected == []


def test_another_container_has_other_rules(wired: Wired) -> None:
    for proxies in (True, False):
        assert wired.curl("--fail", f"https://{HOST}/", proxies=proxies, of=OTHER).returncode != 0
    assert wired.world.connected == []


def test_a_server_name_that_is_another_one_is_told(wired: Wired) -> None:
    done = wired.curl(
        "--connect-to", f"evil.example.net:443:{HOST}:443", "https://evil.example.net/"
    )
    assert "unrecognized name" in done.stderr
    assert wired.secure.asked == []


def test_the_c_library_resolves(wired: Wired) -> None:
    """Over UDP and TCP, and the names of other containers."""
    script = "import socket; print(socket.getaddrinfo('db', 1, socket.AF_INET)[0][4][0])"
    assert wired.run(sys.executable, "-c", script).stdout == f"{OTHER}\n"
    wired.resolv.write_text(f"nameserver {GATEWAY}\noptions use-vc\n")
    assert wired.run(sys.executable, "-c", script).stdout == f"{OTHER}\n"
    wired.resolv.write_text(f"nameserver {GATEWAY}\n")
    done = wired.run(
        sys.executable, "-c", "import socket; socket.getaddrinfo('evil.example.net', 1)"
    )
    assert "Name or service not known" in done.stderr


def test_a_large_body_arrives(wired: Wired, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(4 << 20))
    done = wired.curl("-T", str(tmp_path / "file"), f"https://{HOST}/up")
    assert done.stdout == f"{HOST}/up"
    assert wired.secure.bodies == [(tmp_path / "file").read_bytes()]
