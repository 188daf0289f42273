"""Encrypted disks: qcow2 files with LUKS in them and ext4 in that, made without root.

qemu-img reads the passphrase from a pipe (``secret`` object, qemu(1)): it is in no argument, no
environment and no file. The only plaintext file is an empty file system.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vmrun.model.errors import DeadlineExceeded, StateError

DEADLINE = 120.0
"""Seconds for one process; deriving a key takes about two."""

LONGEST_PASSPHRASE = 512
"""Bytes; cryptsetup's own limit for one that is typed."""

_ITERATION_MS = 10
"""For keys that nobody can guess there is nothing to slow down."""

_NO_CLOCK = "Unable to get accurate CPU usage"
_ATTEMPTS = 20
_SAID = 4096
_LOCKED = (100, 200)
_FLOCK = "hhqqi4x"
"""``struct flock`` where long has 64 bits: type, whence, start, length, pid (fcntl_locking(2))."""


def check_passphrase(passphrase: bytes, where: str) -> None:
    """Raises :class:`StateError` for one that QEMU does not take: it must be text, not empty."""
    try:
        usable = 0 < len(passphrase) <= LONGEST_PASSPHRASE and "\0" not in passphrase.decode()
    except UnicodeDecodeError:
        usable = False
    if not usable:
        raise StateError(
            f"{where} is no passphrase",
            hint=f"one line of UTF-8, from 1 to {LONGEST_PASSPHRASE} bytes",
        )


def create_disk(
    path: Path, size: int, passphrase: bytes, *, guessable: bool = True, journal: bool = True
) -> None:
    """Make an encrypted disk of ``size`` bytes with an empty ext4 file system, which has one
    directory ``data``. Guessing a passphrase that is ``guessable`` is made slow, and so is using
    it. A disk that lasts no longer than one run needs no ``journal``.

    Raises :class:`StateError`, :class:`DeadlineExceeded`.
    """
    check_passphrase(passphrase, "what was given")
    options = "encrypt.format=luks,encrypt.key-secret=key"
    if not guessable:
        options += f",encrypt.iter-time={_ITERATION_MS}"
    # Nothing that is there already is overwritten. One that qemu-img could not make it deletes.
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    try:
        _qemu_img(
            ["create", "-q", "-f", "qcow2", "-o", options], [str(path), str(size)], passphrase
        )
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as directory:
            plain = _file_system(Path(directory), size, journal=journal)
            _qemu_img(
                ["convert", "-n", "--target-image-opts", "-f", "raw"],
                [str(plain), _target(path)],
                passphrase,
            )
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def check_disk(path: Path, passphrase: bytes) -> None:
    """That the passphrase opens the disk and its tables are sound.

    Raises :class:`StateError` for a wrong passphrase, a damaged file and one that a guest has
    open.
    """
    source = {
        "driver": "qcow2",
        "encrypt": {"format": "luks", "key-secret": "key"},
        "file": {"driver": "file", "filename": str(path)},
    }
    # 3 is a file that takes more room than it needs, which a killed guest leaves.
    _qemu_img(["check", "-q"], [f"json:{json.dumps(source)}"], passphrase, accepted=(0, 3))


def in_use(path: Path) -> bool:
    """Whether a QEMU has the disk open: it locks bytes from 100 on, one for each permission that it
    holds or denies others (QEMU, block/file-posix.c). Looking takes no lock.

    Raises :class:`StateError` when that cannot be found out.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, *_LOCKED, 0)
    try:
        with path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, question)
    except OSError as error:
        raise StateError(
            f"cannot look at {path}: {error.strerror}", hint="restore it from a backup"
        ) from None
    kind: int = struct.unpack(_FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK


def _file_system(directory: Path, size: int, *, journal: bool) -> Path:
    plain, content = directory / "plain", directory / "content"
    (content / "data").mkdir(parents=True)
    with plain.open("xb") as file:
        file.truncate(size)
    features = [] if journal else ["-O", "^has_journal"]
    arguments = [
        _tool("mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", *features,
        "-E", "root_owner=0:0,nodiscard", "-d", str(content), str(plain),
    ]  # fmt: skip
    status, said = _run(arguments, ())
    if status != 0:
        raise StateError(f"mke2fs cannot make a file system: {said or status}", hint=_ROOM)
    return plain


_ROOM = "see 'vmrun doctor' for the room that is left"


def _target(path: Path) -> str:
    # A comma in a value of this syntax is written twice (qemu(1), "Device URL Syntax").
    name = str(path).replace(",", ",,")
    return f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.filename={name}"


def _tool(name: str) -> str:
    """Debian keeps it where a plain user's PATH does not lead."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise StateError(f"{name} is not installed", hint="install e2fsprogs and qemu-utils")
    return found


def _qemu_img(
    command: Sequence[str],
    operands: Sequence[str],
    passphrase: bytes,
    *,
    accepted: Sequence[int] = (0,),
) -> None:
    for attempt in range(_ATTEMPTS):
        status, said = _with_key(command, operands, passphrase)
        # Before 9.2 QEMU measures the processor by a clock that may stand still meanwhile.
        if _NO_CLOCK not in said or attempt == _ATTEMPTS - 1:
            break
    if status not in accepted:
        raise _failure(command[0], said or f"exit status {status}")


def _with_key(
    command: Sequence[str], operands: Sequence[str], passphrase: bytes
) -> tuple[int, str]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        # Shorter than what a pipe holds, so that nobody need read it meanwhile.
        os.write(writer, passphrase)
        os.close(writer)
        secret = f"secret,id=key,file=/dev/fd/{reader}"
        verb, *options = command
        arguments = [_tool("qemu-img"), verb, "--object", secret, *options, *operands]
        return _run(arguments, (reader,))
    finally:
        os.close(reader)


def _failure(verb: str, said: str) -> StateError:
    if "Invalid password" in said:
        return StateError(
            "the passphrase does not open it",
            hint="see 'vmrun volume inspect' for where it comes from",
        )
    if "another process using the image" in said:
        return StateError(
            "the volume is in use by a guest", hint="end that run, or wait until it has ended"
        )
    return StateError(f"qemu-img {verb} failed: {said}", hint=_ROOM)


def _run(arguments: Sequence[str], descriptors: Sequence[int]) -> tuple[int, str]:
    """Exit status, and the last line of what it said."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=tuple(descriptors),
            timeout=DEADLINE,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            umask=0o077,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{arguments[0]} did not end within {DEADLINE:g} s") from None
    except OSError as error:
        raise StateError(
            f"cannot run {arguments[0]}: {error.strerror}",
            hint="install e2fsprogs and qemu-utils",
        ) from None
    lines = done.stderr[-_SAID:].decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else ""
    return done.returncode, "".join(c if c.isprintable() else "?" for c in last)[-400:]
