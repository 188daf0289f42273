"""A run that lives is told things while something of it is killed, frozen or broken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

from tests.faults.fault import Act, Fault, Field
from tests.faults.kills import KILL, must
from tests.faults.world import SHORT_LEASE, Violated, World, signal_to, until

VICTIMS = ("supervisor", "QEMU")


def told() -> Iterator[Fault]:
    """exec, stop, rm, pause, restart: a victim dies before or while it is done."""
    for victim in (*VICTIMS, "exec"):
        yield Fault(f"{victim} killed during exec", _killed_during_exec(victim))
    for victim in VICTIMS:
        yield Fault(f"{victim} killed, then exec", _killed_before(victim, "exec"))
        yield Fault(f"{victim} killed after exec", _killed_after_exec(victim))
        yield Fault(f"{victim} killed, then stop", _killed_before(victim, "stop"))
        yield Fault(f"{victim} killed, then rm", _killed_before(victim, "rm"))
    for victim in (*VICTIMS, "stop"):
        yield Fault(f"{victim} killed during stop", _killed_during("stop", victim))
    for victim in (*VICTIMS, "rm"):
        yield Fault(f"{victim} killed during rm", _killed_during("rm", victim))
    for victim in VICTIMS:
        yield Fault(f"{victim} killed while paused", _killed_while_paused(victim))
        yield Fault(f"{victim} killed in restart back-off", _killed_in_back_off(victim))


def frozen() -> Iterator[Fault]:
    """Processes that are there and do nothing."""
    yield Fault("QEMU frozen", _qemu_frozen)
    yield Fault("supervisor frozen for longer than the lease", _supervisor_frozen)
    yield Fault("owner killed, lease runs out", _lease_runs_out)


def broken() -> Iterator[Fault]:
    """What joins the host and the guest breaks."""
    yield Fault("SSH sockets removed", _sockets_removed)
    yield Fault("garbage on the control socket", _garbage)
    yield Fault("control socket removed", _control_socket_removed)
    yield Fault("guest gone by itself", _guest_gone)


def _detached(place: Field, *words: str, options: tuple[str, ...] = ()) -> str:
    return place.world.detached(*words, options=options)


def _kill(world: World, run_id: str, victim: str) -> None:
    signal_to(world.owner(run_id) if victim == "supervisor" else world.qemu(run_id), KILL)


def _finish(process: subprocess.Popen[bytes], timeout: float = 150) -> tuple[int, bytes]:
    """A command's status and messages; it must end, and without a traceback."""
    try:
        _, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        raise Violated(f"{process.args!r} does not end: {err[-300:]!r}") from None
    must(b"Traceback" not in err, f"a traceback: {err[-800:]!r}")
    return process.returncode, err


def _killed_during_exec(victim: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run_id = _detached(place)
        command = world.popen("exec", run_id, "sh", "-c", "echo here; sleep 100")
        assert command.stdout is not None
        must(command.stdout.readline() == b"here\n", "exec says nothing")
        if victim == "exec":
            command.kill()
            _finish(command)
            must(world.execute(run_id, "echo", "on")[0] == 0, "the run suffers with its exec")
            return
        _kill(world, run_id, victim)
        status, err = _finish(command)
        must(status != 0, "exec ended well without a guest")
        must(bool(err.strip()), "exec does not say why")

    return act


def _killed_before(victim: str, word: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run_id = _detached(place)
        place.decoys.like(run_id)
        _kill(world, run_id, victim)
        more = {"exec": ("true",), "stop": ("-t", "1"), "rm": ("--force",)}[word]
        words = (word, run_id, *more) if word == "exec" else (word, *more, run_id)
        status, err = _finish(world.popen(*words))
        if word == "exec":
            must(status != 0, f"{words} succeeded without a guest")
        if word == "rm":
            must(status == 0, f"{words}: status {status}: {err[-300:]!r}")
            must(world.runs.read(run_id) is None, "rm has left the record")

    return act


def _killed_after_exec(victim: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run_id = _detached(place)
        must(world.execute(run_id, "echo", "x") == (0, b"x\n"), "exec does not work")
        _kill(world, run_id, victim)

    return act


def _killed_during(word: str, victim: str) -> Act:
    """The workload does not listen to SIGTERM, so that there is time."""

    def act(place: Field) -> None:
        world = place.world
        run_id = _detached(place, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        words = ("stop", "-t", "20", run_id) if word == "stop" else ("rm", "--force", run_id)
        command = world.popen(*words)
        until(
            lambda: any(
                e.event in ("run.stop", "run.kill") and e.fields.get("run") == run_id
                for e in world.entries()
            ),
            f"{word} is not told",
            60,
        )
        if victim == word:
            command.kill()
        elif run_id in {i.run_id for i in world.others()}:
            try:
                _kill(world, run_id, victim)
            except (StopIteration, ValueError):
                return  # it was quicker
        _finish(command)

    return act


def _killed_while_paused(victim: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run_id = _detached(place)
        status, err = _finish(world.popen("pause", run_id))
        must(status == 0, f"pause: {err!r}")
        must(world.state(run_id) == "paused", "it is not paused")
        _kill(world, run_id, victim)
        if victim == "QEMU":
            until(lambda: not world.others(), "nobody notices that a paused QEMU is gone", 60)

    return act


def _killed_in_back_off(victim: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run_id = _detached(place, "sh", "-c", "exit 3", options=("--restart", "always"))
        until(lambda: world.record(run_id).restarts >= 2, "it is not restarted", 120)
        until(lambda: world.state(run_id) == "restarting", "no back-off", 60, pause=0.01)
        _kill(world, run_id, victim)

    return act


def _qemu_frozen(place: Field) -> None:
    world = place.world
    run_id = world.detached(lease=SHORT_LEASE)
    pid = world.qemu(run_id)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: world.record(run_id).ended, "a frozen QEMU is not noticed", 60)
    until(lambda: not world.others(), "its guest is not removed", 60)
    must("lease" in world.record(run_id).error, f"error: {world.record(run_id).error!r}")
    must(not _runs(pid), "the frozen QEMU is still there")


def _supervisor_frozen(place: Field) -> None:
    world = place.world
    run_id = world.detached(lease=SHORT_LEASE)
    owner, qemu = world.owner(run_id), world.qemu(run_id)
    os.kill(owner, signal.SIGSTOP)
    try:
        until(lambda: not _runs(qemu), "the guest outlives its lease", 90)
        # It is somebody's: nothing of it may be touched while its owner may go on.
        world.gc()
        must(run_id in {i.run_id for i in world.others()}, "taken from a frozen owner")
    finally:
        os.kill(owner, signal.SIGCONT)
    until(lambda: not world.others(), "the supervisor does not clean up", 60)


def _lease_runs_out(place: Field) -> None:
    world = place.world
    run_id = world.detached(lease=SHORT_LEASE)
    qemu = world.qemu(run_id)
    signal_to(world.owner(run_id), KILL)
    until(lambda: not _runs(qemu), "the guest outlives its lease", 90)


def _runs(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _sockets_removed(place: Field) -> None:
    world = place.world
    run_id = _detached(place)
    for path in (world.directories.guests / run_id).glob("ssh.*"):
        path.unlink()
    status, err = _finish(world.popen("stop", "-t", "2", run_id))
    must(status == 0, f"stop: {err[-300:]!r}")


def _garbage(place: Field) -> None:
    world = place.world
    run_id = _detached(place)
    path = str(world.directories.guests / run_id / "api")
    noise = (
        *(b"\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"op": ["run"]}\n', b'{"op": "exec"}\n'),
        *(b'{"op": "signal", "run": 1}\n', b'{"op": "stop", "grace": "x"}\n', b"\xff" * 4096),
        *(b'{"op": "run", "plan": {}, "record": 1}\n', b'{"op": "pause", "run": null}\n'),
        b'{"op": "stop", "run": "%s", "grace": "soon"}\n' % run_id.encode(),
        b'{"op": "exec", "run": "%s", "argv": []}\n' % run_id.encode(),
        bytes(place.chance.randrange(256) for _ in range(2000)),
    )
    for data in noise:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(path)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    must(world.execute(run_id, "echo", "x") == (0, b"x\n"), "it does not answer any more")
    log = world.runs.folder(run_id) / "supervisor.log"
    must("Traceback" not in log.read_text(), f"a traceback: {log.read_text()[-800:]}")


def _control_socket_removed(place: Field) -> None:
    world = place.world
    run_id = _detached(place)
    (world.directories.guests / run_id / "api").unlink()
    begun = time.monotonic()
    status, err = _finish(world.popen("stop", "-t", "1", run_id))
    must(status != 0 and b"nobody answers" in err, f"stop: status {status}, {err[-300:]!r}")
    must(time.monotonic() - begun < 60, "that takes too long")
    # Its owner can still be told in another way.
    signal_to(world.owner(run_id), signal.SIGTERM)
    until(lambda: not world.others(), "the supervisor does not end", 60)


def _guest_gone(place: Field) -> None:
    """QEMU ends in an orderly way, as when the guest powers itself off."""
    world = place.world
    run_id = _detached(place)
    signal_to(world.qemu(run_id), signal.SIGTERM)
    until(lambda: not world.others(), "nobody notices that the guest has gone", 60)
    must(world.record(run_id).ended, "its record says that it runs")
