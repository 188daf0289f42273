"""The crun engine against a scripted guest: what it says, sends, and makes of the answers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine_fakes import READING, USAGE, FakeConnection, Remote
from tests.engine_samples import RUN_ID, container_plan, image_of, plan_of, tar_of
from vmrun.engine.crun import CrunEngine
from vmrun.model.errors import (
    ChannelError,
    DeadlineExceeded,
    DigestMismatch,
    EngineError,
    GuestError,
    ImageError,
    UnsafeLayer,
)
from vmrun.model.plan import Plan
from vmrun.run.ports import Streams, TerminalSize

Body = Callable[[Remote], int | None]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    image = image_of(tmp_path, [tar_of({"a": b"1" * 100_000}), tar_of({".wh.a": b""})])
    return plan_of(image, container_plan())


def receiver(plan: Plan, received: list[bytes], then: Body) -> Body:
    """A guest that takes the bundle as the command says, then goes on with ``then``."""

    def body(remote: Remote) -> int | None:
        received.append(json_document(remote))
        for layer in plan.image.layers:
            received.append(remote.exactly(layer.blob.size))
        remote.write(b"ready\n\n")
        return then(remote)

    return body


def json_document(remote: Remote) -> bytes:
    """The configuration: its braces are balanced, and in no string."""
    depth, text = 0, b""
    while not text or depth:
        text += (byte := remote.read(1))
        depth += {b"{": 1, b"}": -1}.get(byte, 0)
    return text


def gate(remote: Remote) -> int:
    remote.write(READING)
    if remote.line() != b"open\n":
        return 7
    remote.write(USAGE)
    return 0


def hello(remote: Remote) -> int:
    remote.write(b"out")
    remote.write_error(b"err")
    return 3


def streams(stdin: int | None = None, terminal: TerminalSize | None = None) -> Streams:
    return Streams(stdin, io.BytesIO(), io.BytesIO(), terminal)


def run(
    plan: Plan, workload: Body, where: Streams, then: Body = gate
) -> tuple[int, FakeConnection]:
    connection = FakeConnection(
        {
            "guest receive": receiver(plan, [], then),
            "head -c": lambda remote: 0,
            "--bundle=": workload,
            "cgroup.kill": lambda remote: 0,
        }
    )
    engine = CrunEngine()
    engine.deliver(plan, connection)
    container = engine.start(plan, connection, where)
    container.reading(5)
    container.release()
    return container.wait(), connection


def test_a_run_is_two_commands(plan: Plan) -> None:
    where = streams()
    status, connection = run(plan, hello, where)
    assert status == 3
    assert (where.stdout.getvalue(), where.stderr.getvalue()) == (b"out", b"err")  # type: ignore[attr-defined]
    assert len(connection.commands) == 2


def test_what_is_delivered(plan: Plan) -> None:
    received: list[bytes] = []
    connection = FakeConnection({"guest receive": receiver(plan, received, gate)})
    moved = CrunEngine().deliver(plan, connection)
    assert moved == sum(map(len, received))
    config, *blobs = received
    assert json.loads(config)["process"]["args"][:2] == ["/.vmrun-gate", "--"]
    digests = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    assert digests == [layer.blob.digest.hex for layer in plan.image.layers]
    # The guest is told what to expect on the command line, not beside the bytes.
    for hexadecimal in [hashlib.sha256(config).hexdigest(), *digests]:
        assert f"sha256:{hexadecimal}:" in connection.commands[0]


def test_the_bundle_command(plan: Plan) -> None:
    connection = FakeConnection({"guest receive": receiver(plan, [], gate)})
    CrunEngine().deliver(plan, connection)
    steps = connection.commands[0].split(" && ")
    assert steps[0] == "set -o pipefail"
    lower, upper = (layer.blob.digest.hex for layer in plan.image.layers)
    applied = [step for step in steps if "guest apply" in step]
    assert [lower in applied[0], upper in applied[1], upper in applied[2]] == [True] * 3
    assert ["--whiteouts" in step for step in applied] == [False, True, False]
    assert steps[-1] == (
        f"exec /usr/lib/vmrun/guest gate /var/lib/vmrun/{RUN_ID}/pid /vmrun/{RUN_ID} "
        "memory=67108864 pids=32 cpu=50000:100000"
    )


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (3, DigestMismatch, "other bytes"),
        (4, EngineError, "whole"),
        (5, EngineError, "fit"),
        (6, UnsafeLayer, "refused"),
        (127, EngineError, "unpack"),
    ],
)
def test_what_the_guest_tool_refuses(
    plan: Plan, status: int, kind: type[Exception], text: str
) -> None:
    def refuse(remote: Remote) -> int:
        remote.read(10)
        remote.write_error(b"vmrun-guest: the\x1breason\n")
        return status

    with pytest.raises(kind, match=text) as caught:
        CrunEngine().deliver(plan, FakeConnection({"guest receive": refuse}))
    assert "the?reason" in str(caught.value)


def test_a_connection_that_breaks_while_delivering(plan: Plan) -> None:
    with pytest.raises(ChannelError):
        CrunEngine().deliver(plan, FakeConnection({"guest receive": lambda remote: None}))


def test_a_guest_that_never_gets_ready(plan: Plan) -> None:
    def stuck(remote: Remote) -> int:
        while remote.read(1 << 16):
            pass
        return 4

    with pytest.raises(DeadlineExceeded):
        CrunEngine(delivery_timeout=0.3).deliver(plan, FakeConnection({"guest receive": stuck}))


def test_a_blob_that_is_shorter_than_it_says(plan: Plan) -> None:
    blob = plan.image.layers[0].blob.digest
    plan.image.blob_path(blob).write_bytes(b"short")
    with pytest.raises(ImageError, match="shorter"):
        CrunEngine().deliver(plan, FakeConnection({"guest receive": receiver(plan, [], gate)}))


def test_start_needs_a_delivery(plan: Plan) -> None:
    with pytest.raises(EngineError, match="delivered"):
        CrunEngine().start(plan, FakeConnection({}), streams())


def test_crun_that_fails_before_the_gate(plan: Plan) -> None:
    log = (
        b'{"msg":"unknown seccomp syscall `x` ignored","level":"warning","time":"t"}\n'
        b'{"msg":"open `/proc/sys/x`: no\\u001bthing","level":"error","time":"t"}\n'
    )

    def print_log(remote: Remote) -> int:
        remote.write(log)
        return 0

    def waiting(remote: Remote) -> int:
        remote.line()
        return 7

    connection = FakeConnection(
        {
            "guest receive": receiver(plan, [], waiting),
            "head -c": print_log,
            "--bundle=": lambda remote: 1,
        }
    )
    engine = CrunEngine()
    engine.deliver(plan, connection)
    container = engine.start(plan, connection, streams())
    with pytest.raises(EngineError, match=r"open `/proc/sys/x`: no\?thing"):
        container.reading(30)


def test_crun_that_fails_after_the_gate(plan: Plan) -> None:
    def print_log(remote: Remote) -> int:
        remote.write(b'{"msg":"epoll_wait: broken","level":"error"}\n')
        return 0

    connection = FakeConnection(
        {
            "guest receive": receiver(plan, [], gate),
            "head -c": print_log,
            "--bundle=": lambda remote: 1,
        }
    )
    engine = CrunEngine()
    engine.deliver(plan, connection)
    container = engine.start(plan, connection, streams())
    container.reading(5)
    container.release()
    with pytest.raises(EngineError, match="epoll_wait"):
        container.wait()


def test_a_workload_that_exits_with_1(plan: Plan) -> None:
    status, _ = run(plan, lambda remote: 1, streams())
    assert status == 1


def test_usage(plan: Plan) -> None:
    connection = FakeConnection(
        {"guest receive": receiver(plan, [], gate), "--bundle=": hello, "head -c": hello}
    )
    engine = CrunEngine()
    engine.deliver(plan, connection)
    container = engine.start(plan, connection, streams())
    assert container.reading(5).pid == 123
    container.release()
    container.wait()
    assert container.usage().cpu_seconds == 2.5
    assert container.usage().pids_peak == 2


def test_a_gate_that_lies(plan: Plan) -> None:
    def liar(remote: Remote) -> int:
        remote.write(b"pid 1\n\n")
        return 0

    connection = FakeConnection({"guest receive": receiver(plan, [], liar), "--bundle=": hello})
    engine = CrunEngine()
    engine.deliver(plan, connection)
    with pytest.raises(GuestError):
        engine.start(plan, connection, streams()).reading(5)


def test_stdin_is_copied_to_its_end(plan: Plan) -> None:
    def cat(remote: Remote) -> int:
        while data := remote.read(4096):
            remote.write(data)
        return 0

    sent = bytes(range(256)) * 2000
    read, write = os.pipe()
    threading.Thread(target=lambda: (_write_all(write, sent), os.close(write)), daemon=True).start()
    where = streams(read)
    status, _ = run(plan, cat, where)
    assert status == 0
    assert where.stdout.getvalue() == sent  # type: ignore[attr-defined]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def test_stdin_is_left_alone_once_the_workload_has_ended(plan: Plan) -> None:
    read, write = os.pipe()
    status, _ = run(plan, lambda remote: 0, streams(read))
    assert status == 0
    os.write(write, b"for the next one")
    assert os.read(read, 100) == b"for the next one"


def test_no_stdin_is_an_empty_one(plan: Plan) -> None:
    status, _ = run(plan, lambda remote: len(remote.read(10)), streams(None))
    assert status == 0


class BrokenSink(io.RawIOBase):
    def __init__(self, number: int) -> None:
        self.number = number

    def write(self, data: object) -> int:
        raise OSError(self.number, os.strerror(self.number))


def flood(remote: Remote) -> int:
    with contextlib.suppress(BrokenPipeError):
        for _ in range(20):
            remote.write(b"x" * 65536)
    return 137


def test_a_reader_that_has_gone_ends_the_run(plan: Plan) -> None:
    where = Streams(None, BrokenSink(errno.EPIPE), io.BytesIO())  # type: ignore[arg-type]
    status, connection = run(plan, flood, where)
    assert status == 141
    assert sum("cgroup.kill" in command for command in connection.commands) == 1


def test_a_full_disk_is_an_error(plan: Plan) -> None:
    where = Streams(None, BrokenSink(errno.ENOSPC), io.BytesIO())  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="No space left"):
        run(plan, flood, where)


class StuckSink(io.RawIOBase):
    def __init__(self) -> None:
        self.free = threading.Event()

    def write(self, data: object) -> int:
        self.free.wait(30)
        return len(data)  # type: ignore[arg-type]


def test_a_killed_run_does_not_wait_for_a_stuck_reader(plan: Plan) -> None:
    sink = StuckSink()
    connection = FakeConnection(
        {
            "guest receive": receiver(plan, [], gate),
            "--bundle=": hello,
            "cgroup.kill": lambda remote: 0,
        }
    )
    engine = CrunEngine()
    engine.deliver(plan, connection)
    where = Streams(None, sink, io.BytesIO())  # type: ignore[arg-type]
    container = engine.start(plan, connection, where)
    container.reading(5)
    container.release()
    container.kill()
    start = time.monotonic()
    assert container.wait() == 3
    assert time.monotonic() - start < 10
    sink.free.set()


def test_kill_never_raises(plan: Plan) -> None:
    connection = FakeConnection(
        {
            "guest receive": receiver(plan, [], gate),
            "--bundle=": hello,
            "cgroup.kill": lambda r: None,
        }
    )
    engine = CrunEngine()
    engine.deliver(plan, connection)
    container = engine.start(plan, connection, streams())
    container.kill()
    container.kill()


def test_a_terminal_follows_the_hosts(plan: Plan) -> None:
    callbacks: list[Callable[[TerminalSize], None]] = []
    where = Streams(
        None, io.BytesIO(), io.BytesIO(), TerminalSize(80, 24), on_resize=callbacks.append
    )
    connection = FakeConnection({"guest receive": receiver(plan, [], gate), "--bundle=": hello})
    engine = CrunEngine()
    engine.deliver(plan, connection)
    engine.start(plan, connection, where)
    callbacks[0](TerminalSize(100, 30))
    deadline = time.monotonic() + 5
    while not connection.processes[-1].sizes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert connection.processes[-1].sizes == [TerminalSize(100, 30)]
