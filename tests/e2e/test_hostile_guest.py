"""Guests and containers that want the host to grow, to hang or to crash, in real guests."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, leftovers
from tests.guest_process import GuestProcess
from vmrun.channel.ssh import SshConnection
from vmrun.model.base import Flavour
from vmrun.model.errors import VmrunError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB = 1 << 20


def resident(pid: int) -> int:
    """MiB that a process has in memory of its own, as far as the kernel can tell."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) >> 10
    return 0


def take(stream: int, size: int, seconds: float) -> int:
    """Read ``size`` bytes."""
    taken = 0
    deadline = time.monotonic() + seconds
    while taken < size:
        assert time.monotonic() < deadline, f"{taken} bytes came"
        if select.select([stream], [], [], 1)[0]:
            data = os.read(stream, min(65536, size - taken))
            assert data, "the stream ended"
            taken += len(data)
    return taken


@pytest.fixture
def flooding(vmrun_program: list[str], busybox: str) -> Iterator[subprocess.Popen[bytes]]:
    already = leftovers()
    process = subprocess.Popen(
        [*vmrun_program, "run", "-q", busybox, "--", "cat", "/dev/zero", "/dev/zero"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(90)
    assert leftovers() == already


def test_output_without_end_and_a_reader_that_has_stopped(
    flooding: subprocess.Popen[bytes],
) -> None:
    assert flooding.stdout is not None
    out = flooding.stdout.fileno()
    take(out, MIB, 120)
    before = resident(flooding.pid)
    sizes = []
    for _ in range(40):  # nobody reads
        time.sleep(0.25)
        sizes.append(resident(flooding.pid))
    for _ in range(5):  # somebody does, slowly
        take(out, 128 << 10, 60)
        time.sleep(0.5)
        sizes.append(resident(flooding.pid))
    print(f"RssAnon in MiB: {before} after the first MiB, then at most {max(sizes)}")
    assert max(sizes) - before < 24
    assert max(sizes[20:40]) <= max(sizes[:20]) + 2, "it goes on growing while nobody reads"
    take(out, 16 * MIB, 120)
    flooding.stdout.close()
    assert flooding.wait(60) == 128 + 13


def qemu_below(directory: str) -> int:
    """The process of the one guest whose files are there."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                command = (entry / "cmdline").read_bytes()
                if b"qemu-system" in command and os.fsencode(directory) in command:
                    return int(entry.name)
    raise AssertionError("no guest runs")


def test_a_guest_that_stands_still(vmrun_program: list[str], busybox: str) -> None:
    """Nothing answers any more, neither the workload nor sshd: the deadline still ends the run,
    and nothing of it stays."""
    already = leftovers()
    process = subprocess.Popen(
        [
            *[*vmrun_program, "run", "-q", "--timeout", "10", busybox],
            *["--", "sh", "-c", "echo ready; sleep 1000"],
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    take(process.stdout.fileno(), 6, 150)
    os.kill(qemu_below(os.environ["VMRUN_STATE_DIR"]), signal.SIGSTOP)
    start = time.monotonic()
    _, said = process.communicate(timeout=200)
    print(f"ended {time.monotonic() - start:.0f} s after its guest stood still: {said.decode()}")
    assert process.returncode == 124
    assert leftovers() == already


# What root inside says on the ports that are the init's and sshd's.
PORTS = 'for p in /sys/class/virtio-ports/*; do echo "$(cat $p/name) /dev/${p##*/}"; done'
GARBAGE = """
while :; do
  for port in {devices}; do
    head -c 65536 /dev/urandom 2>/dev/null >$port
    printf 'ok lease\\nok poweroff\\nidentified x\\nSSH-2.0-x\\r\\n' 2>/dev/null >$port
  done
done 2>/dev/null
"""


@pytest.fixture
def guest() -> Iterator[GuestProcess]:
    made = GuestProcess.start(Flavour.MINIMAL, 256)
    yield made
    made.stop()


def output_of(connection: SshConnection, command: str) -> tuple[int, str]:
    process = connection.execute(command)
    said = b""
    while data := process.read(65536):
        said += data
    return process.wait(30), said.decode()


def test_garbage_from_inside_on_the_ports(guest: GuestProcess) -> None:
    """Root in the guest cuts off the connections of others and writes over their ports. Each
    connection works, or fails as an error within its time; the guest still comes down clean."""
    connection = guest.connect(0)
    status, said = output_of(connection, PORTS)
    assert status == 0
    ports = dict(line.split() for line in said.splitlines())
    assert {"vmrun.control", "vmrun.ssh.0", "vmrun.ssh.1"} <= ports.keys()
    busy, _ = output_of(connection, f"echo x >{ports['vmrun.control']}")
    print(f"writing to the control port from inside ends with {busy}")
    devices = " ".join(ports[name] for name in ("vmrun.control", "vmrun.ssh.1"))
    attack = connection.execute(GARBAGE.format(devices=devices))
    ways: list[str] = []
    for _ in range(3):
        start = time.monotonic()
        try:
            other = guest.connect(1)
            with contextlib.closing(other):
                assert output_of(other, "echo fine") == (0, "fine\n")
                # The one that serves us is cut off in the middle of its work.
                process = other.execute("sleep 100")
                output_of(connection, "pkill -f 'sleep 100'; pkill -n sshd; true")
                with contextlib.suppress(VmrunError):
                    process.wait(10)
                ways.append("worked")
        except VmrunError as error:
            ways.append(f"{type(error).__name__}: {error.message}")
        assert time.monotonic() - start < 100
    print("connections over the attacked port:", "; ".join(ways))
    attack.close()
    connection.close()


class Counter:
    """Asks one question in a thread, and whether it was answered."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.error: VmrunError | None = None
        self._ask = ask
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._ask()
        except VmrunError as error:
            self.error = error


def test_a_guest_that_stops_under_a_writer(guest: GuestProcess) -> None:
    """The processor halts, as after a panic, while data is on its way: the writer is freed by
    the one who closes, not by the guest."""
    connection = guest.connect(0)
    process = connection.execute("sleep 1000")
    writer = Counter(lambda: process.write(b"x" * (32 * MIB)))
    # No more interrupts for a while: a real stall of all that sshd and the kernel do.
    stopper = guest.connect(1)
    stopper.execute("kill -STOP $(pidof sshd)")
    time.sleep(3)
    start = time.monotonic()
    process.close()
    connection.close()
    writer.thread.join(10)
    assert not writer.thread.is_alive()
    assert writer.error is not None
    assert time.monotonic() - start < 20
    stopper.close()
