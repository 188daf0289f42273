"""Many commands at once, and kills among them."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

from tests.faults.fault import Fault, Field
from tests.faults.kills import KILL, must
from tests.faults.world import World, signal_to

COMMANDS = 20
GUESTS_AT_ONCE = 1
"""Besides the bystander: this is about races, not about the size of the host."""
_PATIENCE = 200.0


def storms() -> Iterator[Fault]:
    """Twenty commands at once."""
    yield Fault("20 commands at once, with kills", _storm)


def _storm(place: Field) -> None:
    world, chance = place.world, place.chance
    room = threading.Semaphore(GUESTS_AT_ONCE)
    said: list[str] = []
    threads = [
        threading.Thread(
            target=_one,
            args=(world, number, random.Random(chance.random()), room, said),
            daemon=True,
        )
        for number in range(COMMANDS)
    ]
    over = threading.Event()
    killer = threading.Thread(
        target=_kill_now_and_then,
        args=(world, random.Random(chance.random()), over),
        daemon=True,
    )
    for thread in (*threads, killer):
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE)
    over.set()
    killer.join(10)
    must(not any(t.is_alive() for t in threads), "a command does not end")
    must(not said, "; ".join(said)[:1500])


def _one(
    world: World, number: int, chance: random.Random, room: threading.Semaphore, said: list[str]
) -> None:
    some = chance.choice([i.run_id for i in world.others()] or ["no-such-run"])
    command, starts = _choose(world, number, some)
    with room if starts else contextlib.nullcontext():
        process = world.popen(*command)
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0.1, 6))
            process.send_signal(chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        try:
            _, err = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            said.append(f"does not end: {command}")
            return
    # One that is interrupted while Python itself starts says so in Python's own way.
    if b"Traceback" in err and not err.rstrip().endswith(b"KeyboardInterrupt"):
        said.append(f"{command}: {err[-700:].decode(errors='replace')}")


def _choose(world: World, number: int, some: str) -> tuple[tuple[str, ...], bool]:
    kinds = (
        (("run", world.image, "--", "echo", "hello"), True),
        (("ps", "-a"), False),
        (("run", "-d", world.image, "--", "sleep", "20"), True),
        (("gc",), False),
        (("exec", some, "true"), False),
        (("stop", "-t", "1", some), False),
        (("run", "oci:/nowhere:image", "--", "true"), False),
        (("rm", "--force", some), False),
        (("exec", world.bystander, "echo", "x"), False),
        (("logs", world.bystander), False),
    )
    return kinds[number % len(kinds)]


def _kill_now_and_then(world: World, chance: random.Random, over: threading.Event) -> None:
    while not over.wait(chance.uniform(3, 9)):
        for intent in world.others():
            if chance.random() < 0.4:
                signal_to(intent.owner, KILL)
            elif chance.random() < 0.4:
                with contextlib.suppress(ValueError):
                    signal_to(world.qemu(intent.run_id), KILL)
