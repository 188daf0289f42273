"""A process in the guest and a command on the host, joined by frames. Nothing is buffered beyond
one read: a slow reader stops the reads here, SSH's window closes, and the process blocks."""

from __future__ import annotations

import contextlib
import json
import threading

from vmrun.engine.pump import CHUNK
from vmrun.engine.runtime import failure_status
from vmrun.model.errors import StateError, VmrunError
from vmrun.run.ports import RemoteProcess, TerminalSize
from vmrun.supervisor.protocol import Kind, Line, failure

_TAIL = 4096


def converse(line: Line, process: RemoteProcess) -> int:
    """Bring the client's frames to ``process`` and its output back, until it has ended; its exit
    status is the last frame, and is returned."""
    tail = bytearray()

    def output() -> None:
        with contextlib.suppress(VmrunError):
            while data := process.read(CHUNK):
                line.send_frame(Kind.STDOUT, data)

    def errors() -> None:
        with contextlib.suppress(VmrunError):
            while data := process.read_error(CHUNK):
                tail.extend(data)
                del tail[:-_TAIL]
                line.send_frame(Kind.STDERR, data)

    threads = [threading.Thread(target=run, daemon=True) for run in (output, errors)]
    for thread in threads:
        thread.start()
    threading.Thread(target=_take_input, args=(line, process), daemon=True).start()
    try:
        status = process.wait()
        for thread in threads:
            thread.join()
    except VmrunError as error:
        line.send_frame(Kind.FAILURE, json.dumps(failure(error)).encode())
        raise
    finally:
        process.close()
    status = failure_status(status, tail.decode("utf-8", "replace"))
    line.send_frame(Kind.EXIT, str(status).encode())
    return status


def _take_input(line: Line, process: RemoteProcess) -> None:
    """The client's frames, until it ends; then the process's channel is closed: nobody is left to
    read what it writes."""
    try:
        while True:
            kind, data = line.receive_frame()
            if kind is Kind.STDIN:
                process.write(data)
            elif kind is Kind.END:
                process.close_stdin()
            elif kind is Kind.RESIZE:
                process.resize(parse_size(data))
    except VmrunError:
        process.close()


def parse_size(data: bytes) -> TerminalSize:
    """``COLUMNSxROWS``. Raises :class:`StateError`."""
    columns, _, rows = data.decode("ascii", "replace").partition("x")
    if not (columns.isdigit() and rows.isdigit() and len(data) < 16):
        raise StateError("not a terminal's size")
    return TerminalSize(int(columns), int(rows))
