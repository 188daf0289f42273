"""Where a volume's passphrase comes from, each time it is needed: a file or a command."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from vmrun.model.errors import DeadlineExceeded, StateError
from vmrun.volume.luks import check_passphrase

COMMAND_DEADLINE = 60.0
_MOST = 4096


def read_passphrase(
    file: Path | None, command: str, *, note: Callable[[str], None], deadline: float | None = None
) -> bytes:
    """The first line of ``file``, or of what ``command`` prints. The command is executed without a
    shell. Raises :class:`StateError`, :class:`DeadlineExceeded`."""
    if file is not None:
        text, where = _of_file(file, note), f"the first line of {file}"
    else:
        text = _of_command(command, COMMAND_DEADLINE if deadline is None else deadline)
        where = f"what {shlex.split(command)[0]!r} prints"
    line = text.partition(b"\n")[0].removesuffix(b"\r")
    check_passphrase(line, where)
    return line


def _of_file(path: Path, note: Callable[[str], None]) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IRGRP):
                note(f"{path} can be read by others: chmod 600 {shlex.quote(str(path))}")
            return file.read(_MOST)
    except OSError as error:
        raise StateError(
            f"cannot read the passphrase in {path}: {error.strerror}",
            hint="name a file that you may read",
        ) from None


def split_command(command: str) -> list[str]:
    """The words of a passphrase command. Raises :class:`StateError`."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise StateError(
            f"not a command: {command[:200]!r}: {error}", hint="quote it as a shell would have it"
        ) from None
    if not words or "\0" in command:
        raise StateError(f"not a command: {command[:200]!r}", hint="name a program and arguments")
    return words


def _of_command(command: str, deadline: float) -> bytes:
    words = split_command(command)
    try:
        # Its stderr is the user's: a password manager may ask something there.
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise StateError(
            f"cannot run the passphrase command {words[0]!r}: {error.strerror}",
            hint="name a program by its path",
        ) from None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(deadline, expire)
    timer.daemon = True
    timer.start()
    try:
        with process:
            if process.stdout is None:
                raise StateError(f"the passphrase command {words[0]!r} has no output")
            data = process.stdout.read(_MOST)
            # One that goes on after its first line need not be waited for.
            process.stdout.close()
            status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
    if expired.is_set():
        raise DeadlineExceeded(
            f"the passphrase command {words[0]!r} took longer than {deadline:g} s"
        )
    if status != 0:
        raise StateError(
            f"the passphrase command {words[0]!r} failed with status {status}",
            hint="run it by hand to see why",
        )
    return data
