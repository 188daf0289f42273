"""Running a credential helper: a program of the user's, with a deadline and a bounded answer."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from typing import IO, cast

from vmrun.model.errors import ImageError

TIMEOUT = 30.0
_LONGEST = 64 * 1024


def ask_program(program: str, server: str) -> tuple[int, bytes]:
    """The exit status and the stdout of ``program get``, which reads ``server`` from stdin.

    Raises :class:`ImageError` when it cannot be run, takes too long or says too much.
    """
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ImageError(
            f"credential helper {program} is not installed",
            hint="install it, or remove it from docker's config.json",
        ) from None
    except OSError as error:
        raise _failed(program, error.strerror or str(error)) from None
    stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    deadline = time.monotonic() + TIMEOUT
    try:
        with suppress(BrokenPipeError), stdin:
            stdin.write(server.encode())
        data = _read(stdout, deadline, program)
        return process.wait(max(0.1, deadline - time.monotonic())), data
    except subprocess.TimeoutExpired:
        raise _failed(program, f"no end after {TIMEOUT:.0f} s") from None
    finally:
        stdout.close()
        if process.returncode is None:  # so that its id is still its own
            # All of its group: a child of it that holds the pipe must not outlive it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(stream: IO[bytes], deadline: float, program: str) -> bytes:
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(data) <= _LONGEST:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise _failed(program, f"no answer in {TIMEOUT:.0f} s")
            piece = os.read(stream.fileno(), _LONGEST)
            if not piece:
                return data
            data += piece
    raise _failed(program, f"its answer has more than {_LONGEST} bytes")


def _failed(program: str, why: str) -> ImageError:
    return ImageError(f"credential helper {program}: {why}", hint="run 'docker login' again")
