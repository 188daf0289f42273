"""A compose file in the guest of a tenant: up, looked at, changed, and down again."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Result, leftovers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

TENANT = "compose-test"
FILE = """\
x-vmrun: {{tenant: {tenant}}}
services:
  server:
    image: oci:{image}:demo
    mem_limit: 32m
    command: ["sh", "-c", "cp /run/secrets/page /www/index.html; exec httpd -f -p 8080 -h /www"]
    tmpfs: /www
    secrets: [page]
    ports: ["{port}:8080"]
    healthcheck:
      test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"]
      interval: 1s
      start_period: 20s
  client:
    image: oci:{image}:demo
    mem_limit: 32m
    command: ["wget", "-q", "-O", "-", "http://server:8080/"]
    depends_on:
      server: {{condition: service_healthy}}
secrets:
  page: {{file: ./page.txt}}
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("web") / "image"
    build = [sys.executable, str(REPOSITORY / "images/workloads/build.py"), "web", str(directory)]
    subprocess.run(build, check=True, timeout=300, capture_output=True)
    return directory


@pytest.fixture
def file(web: Path, tmp_path: Path) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "page.txt").write_text("for whom it may concern\n")
    (folder / "page.txt").chmod(0o600)
    path = folder / "compose.yaml"
    path.write_text(FILE.format(tenant=TENANT, image=web, port=port))
    return path


@pytest.fixture
def tenant(vmrun: Callable[..., Result]) -> Iterator[str]:
    created = vmrun("tenant", "create", TENANT, "--engine", "crun", "--memory", "192m")
    assert created.status == 0, created.err
    yield TENANT
    removed = vmrun("tenant", "rm", "--force", TENANT)
    assert removed.status == 0, removed.err
    assert leftovers() == []


def test_a_project_lives(vmrun: Callable[..., Result], tenant: str, file: Path) -> None:
    where = ("-f", str(file))
    up = vmrun("compose", "up", "-d", *where)
    assert up.status == 0, up.err

    listed = vmrun("compose", "ps", "--json", *where)
    records = {record["name"]: record for record in json.loads(listed.out)}
    server, client = records["shop-server"], records["shop-client"]
    assert (server["state"], server["health"]) == ("running", "healthy")
    assert server["guest"] == client["guest"]
    assert vmrun("wait", "shop-client").out == "0\n"
    assert "client | for whom it may concern" in vmrun("compose", "logs", *where).out

    port = server["ports"][0]["host_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        assert answer.read() == b"for whom it may concern\n"

    # The same again changes nothing; a changed service is made anew, the other is not.
    again = vmrun("compose", "up", "-d", *where)
    assert (again.status, "starting" in again.err) == (0, False)
    file.write_text(file.read_text().replace('-O", "-"', '-O", "/dev/stdout"'))
    changed = vmrun("compose", "up", "-d", *where)
    assert changed.status == 0, changed.err
    assert "client: making anew" in changed.err
    assert "server: running" in changed.err

    outside = vmrun("exec", "shop-server", "nslookup", "example.com")
    assert outside.status != 0
    assert vmrun("exec", "shop-server", "nslookup", "client").status == 0

    down = vmrun("compose", "down", "-t", "0", *where)
    assert down.status == 0, down.err
    assert json.loads(vmrun("compose", "ps", "--json", *where).out) == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("up", "-f", "{missing}"), "no such file"),
        (("up", "-f", "{file}", "--tenant", "nobody"), "the file says"),
        (("up", "-f", "{file}"), f"vmrun tenant create {TENANT}"),
        (("up", "-f", "{file}", "web"), "no service 'web'"),
        (("down", "-f", "{file}", "-t", "-1"), "not possible"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_made(
    vmrun: Callable[..., Result], file: Path, arguments: tuple[str, ...], said: str
) -> None:
    words = [word.format(file=file, missing=file.with_name("none")) for word in arguments]
    result = vmrun("compose", *words)
    assert result.status != 0
    assert said in result.err
    assert leftovers() == []
