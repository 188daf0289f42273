"""What every engine must do, in a real guest; the same for crun and docker.

Needs the fixture ``guest_connection``: a function that takes a :class:`Flavour` and
returns a :class:`Connection` to a running guest of it (the same guest each time, with at least
768 MiB of memory, 1 GiB for docker), or skips the test when there is no such base.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine_samples import container_plan, image_of, plan_of
from vmrun.engine.crun import CrunEngine
from vmrun.engine.docker import DockerEngine
from vmrun.model.errors import DigestMismatch, VmrunError
from vmrun.model.image import Image
from vmrun.model.plan import ContainerPlan, Plan, Tmpfs
from vmrun.model.report import Usage
from vmrun.model.workload import EngineName, Limits
from vmrun.run.ports import Connection, RunningContainer, Streams, TerminalSize

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

GuestConnection = Callable[[Any], Connection]
MIB = 1 << 20
READING_TIMEOUT = 60.0

APPLETS = (
    "cat dd echo false head id ip ls mkfifo mknod mount printf seq sh sleep stty test touch true "
    "tty unshare wc yes"
)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Two layers of busybox; the upper one takes back what the lower one has too much."""
    busybox = shutil.which("busybox")
    if busybox is None or b"statically linked" not in _describe(busybox):
        pytest.skip("needs a static busybox (Debian: busybox-static)")
    return image_of(tmp_path_factory.mktemp("image"), [_lower(Path(busybox)), _upper()])


def _describe(program: str) -> bytes:
    loader = subprocess.run(["ldd", program], capture_output=True, timeout=10, check=False)
    dynamic = loader.returncode == 0 and b"=>" in loader.stdout
    return b"dynamic" if dynamic else b"statically linked"


def _tar(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for entry, data in entries:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _entry(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o755, link: str = "") -> Any:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, link
    return entry


def _lower(busybox: Path) -> bytes:
    directories = [(_entry(name, tarfile.DIRTYPE), b"") for name in ("bin", "etc", "srv", "tmp")]
    links = [
        (_entry(f"bin/{name}", tarfile.SYMTYPE, link="busybox"), b"") for name in APPLETS.split()
    ]
    return _tar(
        [
            *directories,
            (_entry("bin/busybox"), busybox.read_bytes()),
            *links,
            (_entry("etc/removed", mode=0o644), b"lower"),
            (_entry("etc/kept", mode=0o644), b"lower"),
            (_entry("srv/hidden", mode=0o644), b"lower"),
        ]
    )


def _upper() -> bytes:
    return _tar(
        [
            (_entry("etc/.wh.removed", mode=0o644), b""),
            (_entry("etc/plain", mode=0o644), b"not a program"),
            (_entry("srv/.wh..wh..opq", mode=0o644), b""),
            (_entry("srv/shown", mode=0o644), b"upper"),
        ]
    )


class Run:
    """One run, in steps that a test can stop between."""

    def __init__(self, engine: Any, plan: Plan, connection: Connection, streams: Streams) -> None:
        self.plan = plan
        self.moved = engine.deliver(plan, connection)
        self.container: RunningContainer = engine.start(plan, connection, streams)
        self.reading = self.container.reading(READING_TIMEOUT)

    def finish(self) -> int:
        self.container.release()
        return self.container.wait()


class Result:
    """What a finished run left."""

    def __init__(self, status: int, streams: Streams, usage: Usage) -> None:
        self.status = status
        self.out: bytes = streams.stdout.getvalue()  # type: ignore[attr-defined]
        self.err: bytes = streams.stderr.getvalue()  # type: ignore[attr-defined]
        self.usage = usage


class Harness:
    """Runs containers with one engine in one guest."""

    def __init__(self, name: EngineName, connection: Connection, image: Image) -> None:
        self.name = name
        self.connection = connection
        self.image = image

    def plan(self, container: ContainerPlan, image: Image | None = None) -> Plan:
        return replace(plan_of(image or self.image, container), run_id=secrets.token_hex(6))

    def prepare(self, container: ContainerPlan, streams: Streams) -> Run:
        engine = CrunEngine() if self.name is EngineName.CRUN else DockerEngine()
        return Run(engine, self.plan(container), self.connection, streams)

    def run(self, *argv: str, stdin: int | None = None, **changes: object) -> Result:
        streams = Streams(stdin, io.BytesIO(), io.BytesIO())
        plan = container_plan(argv=argv, interactive=stdin is not None, **changes)
        run = self.prepare(plan, streams)
        status = run.finish()
        return Result(status, streams, run.container.usage())

    def shell(self, script: str, **arguments: Any) -> Result:
        return self.run("sh", "-c", script, **arguments)


@pytest.fixture(params=list(EngineName), ids=str)
def engine(
    request: pytest.FixtureRequest, guest_connection: GuestConnection, image: Image
) -> Harness:
    name: EngineName = request.param
    return Harness(name, guest_connection(name.flavour), image)


@contextlib.contextmanager
def feeding(data: bytes) -> Iterator[int]:
    """A pipe that brings ``data`` and ends."""
    read, write = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as file:
            file.write(data)

    threading.Thread(target=feed, daemon=True).start()
    try:
        yield read
    finally:
        os.close(read)


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_exit_status(engine: Harness, status: int) -> None:
    assert engine.shell(f"exit {status}").status == status


def test_killed_by_a_signal(engine: Harness) -> None:
    # As the first process of its PID namespace the shell cannot be killed from inside; exec
    # would not change that, so the status is that of a child, by the shell's own reckoning.
    assert engine.shell("sh -c 'kill -TERM $$'; exit $?").status == 128 + 15


@pytest.mark.parametrize(
    ("command", "status"),
    [("nonesuch", 127), ("/no/such", 127), ("/etc/plain", 126), ("/etc", 126)],
)
def test_a_command_that_cannot_be_run(engine: Harness, command: str, status: int) -> None:
    result = engine.run(command)
    assert result.status == status
    assert command.encode() in result.err


def test_stdout_and_stderr_are_apart(engine: Harness) -> None:
    result = engine.shell("echo to stdout; echo to stderr >&2")
    assert (result.out, result.err) == (b"to stdout\n", b"to stderr\n")


def test_output_without_a_newline_just_before_the_end(engine: Harness) -> None:
    assert engine.shell("printf last").out == b"last"


def test_stdin_is_carried_byte_for_byte(engine: Harness) -> None:
    data = bytes(range(256)) * 1024
    with feeding(data) as stdin:
        assert engine.run("cat", stdin=stdin).out == data


def test_without_stdin_it_is_empty(engine: Harness) -> None:
    assert engine.shell("wc -c").out.split() == [b"0"]


def test_much_output_and_a_slow_reader(engine: Harness) -> None:
    """8 MiB through a reader that starts late: nothing is lost, and little is held meanwhile."""
    read, write = os.pipe()
    digest, size = hashlib.sha256(), 0

    def consume() -> None:
        nonlocal size
        time.sleep(1.0)
        while data := os.read(read, 1 << 16):
            digest.update(data)
            size += len(data)

    consumer = threading.Thread(target=consume)
    consumer.start()
    with os.fdopen(write, "wb", buffering=0) as sink:
        streams = Streams(None, sink, io.BytesIO())  # type: ignore[arg-type]
        command = ("sh", "-c", "yes 0123456789abcde | head -c 8388608")
        assert engine.prepare(container_plan(argv=command), streams).finish() == 0
    consumer.join(60)
    os.close(read)
    assert size == 8 * MIB
    assert digest.hexdigest() == hashlib.sha256(b"0123456789abcde\n" * (MIB // 2)).hexdigest()


def test_a_reader_that_goes_away_ends_the_run(engine: Harness) -> None:
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb", buffering=0) as sink:
        streams = Streams(None, sink, io.BytesIO())  # type: ignore[arg-type]
        assert engine.prepare(container_plan(argv=("yes",)), streams).finish() == 141


def test_environment_directory_user(engine: Harness) -> None:
    result = engine.shell(
        'echo "$WORD|$(pwd)|$(id -u):$(id -g)|$(id -G)|$(cat /proc/sys/kernel/hostname)"',
        env=("PATH=/bin", "WORD=one two 'three' ü"),
        workdir="/srv",
        uid=1234,
        gid=2345,
        groups=(3456, 4567),
        hostname="other",
    )
    word, directory, user, groups, hostname = result.out.decode().strip().split("|")
    assert word == "one two 'three' ü"
    assert directory == "/srv"
    assert user == "1234:2345"
    assert set(groups.split()) == {"2345", "3456", "4567"}
    assert hostname == "other"


def test_layers_and_whiteouts(engine: Harness) -> None:
    assert engine.shell("echo $(cd /etc && echo kept* removed*) $(ls /srv)").out.split() == [
        b"kept", b"removed*", b"shown",
    ]  # fmt: skip


def test_the_image_cannot_be_changed_and_tmp_can(engine: Harness) -> None:
    result = engine.shell(
        "touch /etc/new; touch /tmp/new && cp /bin/busybox /tmp/ && /tmp/busybox true",
    )
    assert b"Read-only file system" in result.err
    assert result.status == 126  # written, but not executable there


def test_a_writable_root_and_an_executable_tmpfs_when_asked_for(engine: Harness) -> None:
    result = engine.shell(
        "touch /srv/new && cp /bin/busybox /run/ && /run/busybox echo ran",
        read_only=False,
        uid=0,
        gid=0,
        tmpfs=(Tmpfs("/run", 16 * MIB, 0o755, executable=True),),
    )
    assert (result.status, result.out) == (0, b"ran\n")


def test_nothing_but_loopback(engine: Harness) -> None:
    result = engine.shell("ip -o link; ip -o addr show dev lo")
    assert re.search(rb"lo: <LOOPBACK,UP", result.out)
    assert re.findall(rb"^\d+: (\S+?)[:@]", result.out, re.MULTILINE) == [b"lo"]
    assert b"127.0.0.1/8" in result.out


def test_a_low_port_needs_no_privilege(engine: Harness) -> None:
    assert engine.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").out == b"0\n"


def test_what_seccomp_refuses(engine: Harness) -> None:
    script = (
        "mkfifo /tmp/fifo && echo a FIFO; "
        "for refused in 'mount -t tmpfs x /tmp' 'unshare -U true' 'mknod /tmp/device c 1 3'; "
        "do $refused 2>/dev/null || echo not $refused; done"
    )
    assert engine.shell(script, uid=0, gid=0).out.decode().splitlines() == [
        "a FIFO",
        "not mount -t tmpfs x /tmp",
        "not unshare -U true",
        "not mknod /tmp/device c 1 3",
    ]


def test_confinement_is_the_plans(engine: Harness) -> None:
    limits = Limits(memory=48 * MIB, cpus=0.5, pids=20, files=128)
    plan = container_plan(argv=("true",), limits=limits, uid=1234, gid=2345, groups=(3456,))
    run = engine.prepare(plan, Streams(None, io.BytesIO(), io.BytesIO()))
    reading = run.reading
    assert run.finish() == 0
    assert reading.status["Uid"].split() == ["1234"] * 4
    assert reading.status["Gid"].split() == ["2345"] * 4
    assert set(reading.status["Groups"].split()) <= {"2345", "3456"}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(reading.status[name], 16) == 0
    assert reading.status["NoNewPrivs"] == "1"
    assert reading.status["Seccomp"] == "2"
    assert reading.root_read_only
    private = {kind for kind, own in reading.namespaces.items() if own}
    assert private == {"cgroup", "ipc", "mnt", "net", "pid", "uts"}
    assert reading.open_files == ("128", "128")
    assert reading.cgroup["memory.max"] == str(48 * MIB)
    assert reading.cgroup["memory.swap.max"] == "0"
    assert reading.cgroup["pids.max"] == "20"
    assert reading.cgroup["cpu.max"] == "50000 100000"
    kind, options = reading.mounts["/tmp"]
    assert kind == "tmpfs"
    assert {"rw", "nosuid", "nodev", "noexec"} <= options
    assert {"nosuid", "nodev", "noexec"} <= reading.mounts["/proc"][1]
    assert {"nosuid", "nodev", "noexec"} <= reading.mounts["/dev/shm"][1]
    for path in ("/sys", "/sys/fs/cgroup", "/proc/sys", "/.vmrun-gate"):
        assert "ro" in reading.mounts[path][1], path
    for path in ("/proc/kcore", "/proc/keys", "/sys/firmware"):
        assert path in reading.mounts, path


def test_capabilities_of_root(engine: Harness) -> None:
    held = ("CAP_NET_BIND_SERVICE", "CAP_CHOWN")
    plan = container_plan(argv=("true",), uid=0, gid=0, capabilities=held)
    run = engine.prepare(plan, Streams(None, io.BytesIO(), io.BytesIO()))
    assert run.finish() == 0
    expected = 1 << 10 | 1 << 0
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(run.reading.status[name], 16) == expected
    assert int(run.reading.status["CapInh"], 16) == 0


def test_capabilities_of_another_user(engine: Harness) -> None:
    plan = container_plan(argv=("true",), capabilities=("CAP_NET_BIND_SERVICE",))
    streams = Streams(None, io.BytesIO(), io.BytesIO())
    if engine.name is EngineName.DOCKER:
        with pytest.raises(VmrunError, match="cannot give"):
            engine.prepare(plan, streams)
        return
    run = engine.prepare(plan, streams)
    assert run.finish() == 0
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(run.reading.status[name], 16) == 1 << 10


def test_nothing_runs_before_it_is_released(engine: Harness) -> None:
    out = io.BytesIO()
    plan = container_plan(argv=("echo", "ran"))
    run = engine.prepare(plan, Streams(None, out, io.BytesIO()))
    time.sleep(1.0)
    assert out.getvalue() == b""
    assert run.finish() == 0
    assert out.getvalue() == b"ran\n"


def test_kill_at_the_gate(engine: Harness) -> None:
    out = io.BytesIO()
    run = engine.prepare(container_plan(argv=("echo", "ran")), Streams(None, out, io.BytesIO()))
    run.container.kill()
    assert out.getvalue() == b""


def test_kill(engine: Harness) -> None:
    run = engine.prepare(
        container_plan(argv=("sh", "-c", "trap '' TERM INT HUP; echo up; sleep 600 & sleep 600")),
        Streams(None, out := io.BytesIO(), io.BytesIO()),
    )
    run.container.release()
    threading.Timer(2.0, run.container.kill).start()
    start = time.monotonic()
    assert run.container.wait() == 128 + 9
    assert time.monotonic() - start < 30
    assert out.getvalue() == b"up\n"
    run.container.kill()  # again: it is gone, and that is no error


def test_too_much_memory(engine: Harness) -> None:
    limits = Limits(memory=24 * MIB, cpus=1.0, pids=16, files=128)
    result = engine.shell("dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?", limits=limits)
    assert result.status == 128 + 9
    assert result.usage.oom_kills
    assert result.usage.memory_peak is not None
    assert 16 * MIB < result.usage.memory_peak <= 24 * MIB


def test_too_many_processes(engine: Harness) -> None:
    limits = Limits(memory=64 * MIB, cpus=1.0, pids=12, files=128)
    script = "for i in $(seq 30); do sleep 3 & done; wait"
    result = engine.shell(script, limits=limits)
    assert result.status != 0
    assert result.usage.pids_refused
    assert result.usage.pids_peak == 12


def test_usage(engine: Harness) -> None:
    usage = engine.shell("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done").usage
    assert usage.cpu_seconds is not None
    assert usage.cpu_seconds > 0
    assert usage.oom_kills == usage.pids_refused == 0


def test_terminal(engine: Harness) -> None:
    out = io.BytesIO()
    resize: list[Callable[[TerminalSize], None]] = []
    streams = Streams(
        None, out, io.BytesIO(), terminal=TerminalSize(101, 31), on_resize=resize.append
    )
    script = (
        "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo three; "
        "i=0; while [ \"$(stty size)\" != '41 120' ] && [ $i -lt 100 ]; "
        "do i=$((i+1)); sleep 0.1; done; stty size; printf last"
    )
    plan = container_plan(argv=("sh", "-c", script), terminal=True, interactive=True)
    read, write = os.pipe()  # a terminal at which nobody types
    run = engine.prepare(plan, replace(streams, stdin=read))
    run.container.release()
    time.sleep(1.0)
    resize[0](TerminalSize(120, 41))
    assert run.container.wait() == 0
    os.close(read)
    os.close(write)
    lines = out.getvalue().replace(b"\r", b"").decode().split("\n")
    assert lines == ["/dev/pts/0", "31 101", "three", "41 120", "last"]


def test_typing_at_a_terminal(engine: Harness) -> None:
    out = io.BytesIO()
    with feeding(b"hello\n\x04") as stdin:
        streams = Streams(stdin, out, io.BytesIO(), terminal=TerminalSize(80, 24))
        plan = container_plan(argv=("cat",), terminal=True, interactive=True)
        assert engine.prepare(plan, streams).finish() == 0
    assert out.getvalue().count(b"hello\r\n") == 2  # the echo, and cat's answer


def test_typing_at_a_terminal_until_the_end(engine: Harness) -> None:
    out = io.BytesIO()
    with feeding(b"hello\n") as stdin:
        streams = Streams(stdin, out, io.BytesIO(), terminal=TerminalSize(80, 24))
        plan = container_plan(argv=("cat",), terminal=True, interactive=True)
        assert engine.prepare(plan, streams).finish() == 0
    assert out.getvalue().count(b"hello\r\n") == 2


@pytest.mark.parametrize("same_size", [True, False], ids=["replaced", "damaged"])
def test_a_layer_that_is_not_what_was_verified(
    engine: Harness, tmp_path: Path, same_size: bool
) -> None:
    # Of its own for each test: dockerd does not read a layer again that it already has.
    secret = secrets.token_hex(16).encode()
    image = image_of(tmp_path, [_tar([(_entry("secret"), secret)])], level=0)
    blob = image.blob_path(image.layers[0].blob.digest)
    if same_size:
        other = image_of(tmp_path, [_tar([(_entry("secret"), secret[::-1])])], level=0)
        shutil.copy(other.blob_path(other.layers[0].blob.digest), blob)
    else:
        data = bytearray(blob.read_bytes())
        data[-12] ^= 1
        blob.write_bytes(data)
    subject = CrunEngine() if engine.name is EngineName.CRUN else DockerEngine()
    with pytest.raises(DigestMismatch):
        subject.deliver(engine.plan(container_plan(), image=image), engine.connection)
