"""One command in the guest that takes data or lets go of it, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Iterable

from vmrun.engine.pump import ErrorTail
from vmrun.engine.watchdog import Watchdog
from vmrun.model.errors import ChannelError, GuestError, VmrunError
from vmrun.model.report import Removed
from vmrun.run.ports import Connection, RemoteProcess

TRANSFER_TIMEOUT = 900.0
RELEASE_TIMEOUT = 60.0


def send(connection: Connection, command: str, chunks: Iterable[bytes]) -> int:
    """Execute ``command`` with ``chunks`` on its stdin; returns the bytes sent.

    Raises :class:`GuestError` with what it said when it fails, :class:`DeadlineExceeded`.
    """
    process = connection.execute(command)
    errors = ErrorTail(process.read_error)
    moved = 0
    try:
        with Watchdog(TRANSFER_TIMEOUT, process.close, "the data did not get into the guest"):
            try:
                for chunk in chunks:
                    process.write(chunk)
                    moved += len(chunk)
                process.close_stdin()
            except ChannelError as error:
                raise _refused(process, errors) from error
            status = process.wait(TRANSFER_TIMEOUT)
    finally:
        process.close()
    if status != 0:
        raise _failure(errors, status)
    return moved


def let_go(connection: Connection, command: str, what: str) -> Removed:
    """Execute ``command``, which writes data out and unmounts it; whether all of ``what`` was, or
    in its place why not. Raises :class:`ChannelError`, :class:`DeadlineExceeded`."""
    process = connection.execute(command)
    errors = ErrorTail(process.read_error)
    try:
        process.close_stdin()
        status = process.wait(RELEASE_TIMEOUT)
    finally:
        process.close()
    return Removed("mounts", what if status == 0 else last(errors, status), gone=status == 0)


def last(errors: ErrorTail, status: int) -> str:
    """The last line that it said."""
    lines = errors.text().splitlines() or [f"exit status {status}"]
    return lines[-1].removeprefix("vmrun-guest: ")[:300]


def _refused(process: RemoteProcess, errors: ErrorTail) -> VmrunError:
    """It ended before all was sent; why it says itself."""
    try:
        return _failure(errors, process.wait(RELEASE_TIMEOUT))
    except VmrunError as error:
        return error


def _failure(errors: ErrorTail, status: int) -> GuestError:
    said = last(errors, status)
    hint = "see 'vmrun volume inspect' for the volume, 'vmrun plan' for the guest's memory"
    if "mounting" in said and "Read-only file system" in said:
        # ext4 on a disk that cannot be written to, with a journal that has to be.
        hint = "use the volume once read-write: its last guest was killed, and its journal waits"
    return GuestError(f"the guest cannot take its data: {said}", hint=hint, details=errors.text())
