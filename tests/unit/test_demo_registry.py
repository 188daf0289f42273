"""The company's registry of the demo: a real docker-registry, asked by Python's own client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.workloads import registry as module
from images.workloads.registry import Registry, RegistryError, company_registry, tamper

PROGRAMS = ("docker-registry", "openssl", "htpasswd", "setpriv")

real = pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS),
    reason=f"needs {', '.join(PROGRAMS)}",
)


def authority(registry: Registry) -> Path:
    return registry.cert_dir / registry.host / "ca.crt"


def stored_credentials(registry: Registry) -> str:
    auths = json.loads(registry.auth_file.read_text())["auths"]
    return base64.b64decode(auths[registry.host]["auth"]).decode()


def ask(
    registry: Registry,
    method: str,
    path: str,
    *,
    credentials: str | None = None,
    body: bytes | None = None,
    ca: Path | None = None,
    name: str = "127.0.0.1",
) -> tuple[int, dict[str, str], bytes]:
    context = ssl.create_default_context(cafile=ca or authority(registry))
    port = int(registry.host.rpartition(":")[2])
    connection = http.client.HTTPSConnection(name, port, timeout=10, context=context)
    headers = {"Content-Type": "application/octet-stream"}
    if credentials is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def push(registry: Registry, data: bytes) -> str:
    credentials = stored_credentials(registry)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _, headers, _ = ask(
        registry, "POST", "/v2/team/app/blobs/uploads/", credentials=credentials, body=b""
    )
    place = headers["location"].partition(registry.host)[2] or headers["location"]
    status, _, answer = ask(
        registry, "PUT", f"{place}&digest={digest}", credentials=credentials, body=data
    )
    assert status == 201, answer
    return digest


def listens(host: str) -> bool:
    address, _, port = host.rpartition(":")
    try:
        socket.create_connection((address, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("company") / "registry"
    with company_registry(directory, user="ada", password="correct horse") as running:
        yield running


# --- what it lets in -----------------------------------------------------------------------


@real
def test_who_has_no_password_is_refused(registry: Registry) -> None:
    assert ask(registry, "GET", "/v2/")[0] == 401
    assert ask(registry, "POST", "/v2/team/app/blobs/uploads/", body=b"")[0] == 401


@real
@pytest.mark.parametrize("wrong", ["ada:wrong", "ada:", "eve:correct horse", "ada:correct hors"])
def test_a_wrong_password_is_refused(registry: Registry, wrong: str) -> None:
    assert ask(registry, "GET", "/v2/", credentials=wrong)[0] == 401


@real
def test_the_stored_credentials_are_accepted(registry: Registry) -> None:
    assert stored_credentials(registry) == "ada:correct horse"
    assert ask(registry, "GET", "/v2/", credentials="ada:correct horse")[0] == 200


@real
def test_without_a_password_each_registry_gets_its_own(tmp_path: Path) -> None:
    with company_registry(tmp_path / "a") as first, company_registry(tmp_path / "b") as second:
        one, other = stored_credentials(first), stored_credentials(second)
        assert first.host != second.host
        assert one != other
        assert ask(first, "GET", "/v2/", credentials=one)[0] == 200
        assert ask(first, "GET", "/v2/", credentials=other)[0] == 401


@real
def test_secrets_are_for_this_user_only(registry: Registry) -> None:
    directory = registry.auth_file.parent
    assert stat.S_IMODE(registry.auth_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in ("htpasswd", "server.key", "registry.json", "registry.log"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600, name
    assert "correct horse" not in (directory / "htpasswd").read_text()
    assert not (directory / "ca.key").exists()


@real
def test_a_file_of_an_earlier_time_does_not_stay_readable(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0o644)
    with company_registry(tmp_path) as running:
        assert stat.S_IMODE(running.auth_file.stat().st_mode) == 0o600


# --- TLS -----------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_its_certificate_names_the_loopback_host(registry: Registry, name: str) -> None:
    assert ask(registry, "GET", "/v2/", name=name)[0] == 401


@real
def test_another_registry_s_ca_is_not_enough(registry: Registry, tmp_path: Path) -> None:
    with (
        company_registry(tmp_path) as other,
        pytest.raises(ssl.SSLCertVerificationError, match="verify failed"),
    ):
        ask(registry, "GET", "/v2/", ca=authority(other))


@real
def test_the_host_s_own_cas_are_not_enough(registry: Registry) -> None:
    port = int(registry.host.rpartition(":")[2])
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection), pytest.raises(ssl.SSLCertVerificationError):
        connection.request("GET", "/v2/")


@real
def test_the_certificates_are_p256_and_last_two_days(registry: Registry) -> None:
    for certificate in (authority(registry), registry.auth_file.parent / "server.crt"):
        text = subprocess.run(
            ["openssl", "x509", "-in", certificate, "-noout", "-text"],
            check=True, capture_output=True, text=True, timeout=30,
        ).stdout  # fmt: skip
        assert "NIST CURVE: P-256" in text
        for days, status in ((1.9, 0), (2.1, 1)):
            ends = subprocess.run(
                ["openssl", "x509", "-in", certificate, "-checkend", str(int(days * 86400))],
                check=False, capture_output=True, timeout=30,
            )  # fmt: skip
            assert ends.returncode == status


# --- what it serves ------------------------------------------------------------------------


@real
def test_tampering_changes_one_byte_of_what_is_served(registry: Registry) -> None:
    data = bytes(range(256)) * 40
    digest, untouched = push(registry, data), push(registry, b"another blob")
    credentials = stored_credentials(registry)
    path = f"/v2/team/app/blobs/{digest}"
    assert ask(registry, "GET", path, credentials=credentials)[2] == data

    tamper(registry, digest)

    status, headers, served = ask(registry, "GET", path, credentials=credentials)
    assert status == 200
    assert len(served) == len(data)
    assert sum(a != b for a, b in zip(served, data, strict=True)) == 1
    # The registry does not notice: whoever pulls has to.
    assert headers["docker-content-digest"] == digest
    assert f"sha256:{hashlib.sha256(served).hexdigest()}" != digest
    path = f"/v2/team/app/blobs/{untouched}"
    assert ask(registry, "GET", path, credentials=credentials)[2] == b"another blob"


@real
def test_a_blob_of_one_byte_can_be_changed_an_empty_one_not(registry: Registry) -> None:
    digest = push(registry, b"x")
    tamper(registry, digest)
    path = f"/v2/team/app/blobs/{digest}"
    served = ask(registry, "GET", path, credentials=stored_credentials(registry))[2]
    assert len(served) == 1
    assert served != b"x"
    with pytest.raises(RegistryError, match="empty"):
        tamper(registry, push(registry, b""))


@pytest.mark.parametrize(
    ("digest", "message"),
    [
        (f"sha256:{'0' * 64}", "cannot change sha256:0000"),
        ("sha256:../../../../etc/passwd", "not a sha256 digest"),
        (f"sha256:{'A' * 64}", "not a sha256 digest"),
        (f"sha512:{'0' * 128}", "not a sha256 digest"),
        (f"sha256:{'0' * 64}\n", "not a sha256 digest"),
        ("", "not a sha256 digest"),
    ],
)
def test_only_blobs_that_are_there_are_changed(tmp_path: Path, digest: str, message: str) -> None:
    nowhere = Registry("127.0.0.1:1", tmp_path, tmp_path, tmp_path / "storage", tmp_path)
    with pytest.raises(RegistryError, match=message):
        tamper(nowhere, digest)


@real
def test_what_was_stored_is_served_again(tmp_path: Path) -> None:
    with company_registry(tmp_path) as first:
        digest = push(first, b"kept")
    with company_registry(tmp_path) as second:
        path, credentials = f"/v2/team/app/blobs/{digest}", stored_credentials(second)
        assert ask(second, "GET", path, credentials=credentials)[2] == b"kept"
        assert [entry.name for entry in second.cert_dir.iterdir()] == [second.host]


# --- its start and its end -----------------------------------------------------------------


@real
def test_it_is_gone_after_the_block(tmp_path: Path) -> None:
    with company_registry(tmp_path) as running:
        assert listens(running.host)
    assert not listens(running.host)


@real
@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_gone_however_the_block_ends(tmp_path: Path, end: type[BaseException]) -> None:
    hosts = []

    def block() -> None:
        with company_registry(tmp_path) as running:
            hosts.append(running.host)
            assert listens(running.host)
            raise end

    with pytest.raises(end):
        block()
    assert not listens(hosts[0])


@real
def test_it_is_gone_when_its_starter_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from images.workloads.registry import company_registry\n"
        "with company_registry(Path(sys.argv[1])) as running:\n"
        "    print(running.host, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as starter:
        try:
            assert starter.stdout is not None
            host = starter.stdout.readline().strip()
            assert listens(host)
        finally:
            starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while listens(host) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(host)


@real
def test_the_environment_changes_neither_its_address_nor_who_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_HTTP_ADDR", "0.0.0.0:0")
    monkeypatch.setenv("REGISTRY_AUTH_HTPASSWD_PATH", str(tmp_path / "others"))
    monkeypatch.setenv("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", str(tmp_path / "elsewhere"))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    with company_registry(tmp_path / "registry") as running:
        assert running.host.startswith("127.0.0.1:")
        push(running, b"here")
        assert running.storage.is_dir()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("missing", PROGRAMS)
def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for program in PROGRAMS:
        if program != missing:
            stand_in(tmp_path / "bin", program, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with (
        pytest.raises(RegistryError, match=f"^{missing} is not installed: apt-get install "),
        company_registry(tmp_path / "registry"),
    ):
        pass
    assert not (tmp_path / "registry").exists()


def stand_in(directory: Path, program: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / program).write_text(f"#!/bin/sh\n{script}\n")
    (directory / program).chmod(0o755)


def before_others(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("PATH", f"{directory}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")


@real
def test_one_that_does_not_start_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(
        tmp_path / "bin",
        "docker-registry",
        "seq 1 5000 >&2; echo 'panic: storage driver not registered' >&2; exit 2",
    )
    before_others(monkeypatch, tmp_path / "bin")
    with pytest.raises(RegistryError) as raised, company_registry(tmp_path / "registry"):
        pass
    message = str(raised.value)
    assert "ended with status 2" in message
    assert message.endswith("panic: storage driver not registered")
    assert len(message) < 1500


@real
def test_one_that_does_not_answer_in_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It says that it listens, answers nobody, and does not mind SIGTERM.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        host = "{}:{}".format(*deaf.getsockname())
        stand_in(
            tmp_path / "bin",
            "docker-registry",
            f'trap "" TERM; echo $$ > {tmp_path}/pid; echo \'msg="listening on {host}, tls"\'\n'
            "while :; do sleep 0.1; done",
        )
        before_others(monkeypatch, tmp_path / "bin")
        monkeypatch.setattr(module, "_START_SECONDS", 1.0)
        monkeypatch.setattr(module, "_STOP_SECONDS", 0.5)
        with (
            pytest.raises(RegistryError, match=r"does not answer after 1 s.*(?s:.*)listening on"),
            company_registry(tmp_path / "registry"),
        ):
            pass
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@real
def test_a_failing_openssl_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", "openssl", "echo 'unknown curve' >&2; exit 1")
    before_others(monkeypatch, tmp_path / "bin")
    with (
        pytest.raises(RegistryError, match="openssl ended with status 1: unknown curve"),
        company_registry(tmp_path / "registry"),
    ):
        pass


@real
@pytest.mark.parametrize(
    ("user", "password"),
    [("a:b", "secret"), ("ada", ""), ("ada", "two\nlines"), ("ada", "nul\0"), ("ada", "x" * 73)],
)
def test_credentials_that_htpasswd_would_not_keep_whole(
    tmp_path: Path, user: str, password: str
) -> None:
    with (
        pytest.raises(RegistryError) as raised,
        company_registry(tmp_path, user=user, password=password),
    ):
        pass
    assert not password or password not in str(raised.value)


@real
def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(RegistryError, match="cannot prepare a registry in "),
        company_registry(tmp_path / "file"),
    ):
        pass
