"""What a guest's control socket answers to: one method an operation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from vmrun.model.errors import DeadlineExceeded, StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord
from vmrun.model.wire import decode, encode
from vmrun.run.ports import Streams, TerminalSize
from vmrun.supervisor.attachment import Attachment
from vmrun.supervisor.conversation import converse
from vmrun.supervisor.protocol import Kind, Line, failure
from vmrun.supervisor.sealed import opened
from vmrun.supervisor.server import Answer
from vmrun.supervisor.service import Service
from vmrun.supervisor.services import stop_signal
from vmrun.supervisor.tracked import TrackedRun

_LONGEST_STOP = 3600.0
_LONGEST_PATH = 4095


class Living(Protocol):
    """The runs of one guest."""

    def add(self, plan: Plan, record: RunRecord, streams: Streams | None = None) -> Service:
        """Begin one more; :class:`StateError` where the guest takes no other."""

    def get(self, run_id: object) -> TrackedRun:
        """The run with that id."""

    def all(self) -> tuple[TrackedRun, ...]:
        """Every run that has not ended."""

    def end(self) -> None:
        """End the guest with all of them."""


class Answers:
    """The operations on the runs of one guest."""

    def __init__(
        self,
        services: Living,
        entrusted: Callable[
            [str, Mapping[str, bytes]], AbstractContextManager[None]
        ] = lambda _run_id, _secrets: contextlib.nullcontext(),
    ) -> None:
        """``entrusted`` keeps the bytes of a run's secrets, which came with the request, while it
        is being started."""
        self._services = services
        self._entrusted = entrusted

    def table(self) -> Mapping[str, Answer]:
        """Each operation's function, by its name."""
        return {
            "runs": self.runs,
            "run": self.run,
            "exec": self.execute,
            "copy-out": self.copy_out,
            "copy-in": self.copy_in,
            "signal": self.signal,
            "stop": self.stop,
            "pause": self.pause,
            "unpause": self.unpause,
            "stats": self.stats,
            "wait": self.wait,
            "end": self.end,
        }

    def runs(self, line: Line, _request: dict[str, Any]) -> None:
        """The records of what runs in this guest."""
        line.send({"runs": [encode(service.record) for service in self._services.all()]})

    def run(self, line: Line, request: dict[str, Any]) -> None:
        """Begin one more run; with ``attach`` its streams follow as frames."""
        plan = decode(Plan, request.get("plan"))
        record = decode(RunRecord, request.get("record"))
        with self._entrusted(plan.run_id, opened(request.pop("secrets", None) or {})):
            self._begin(line, request, plan, record)

    def _begin(self, line: Line, request: dict[str, Any], plan: Plan, record: RunRecord) -> None:
        attach = request.get("attach")
        if not isinstance(attach, dict | None):
            raise StateError("attach is no object")
        if attach is None:
            service = self._services.add(plan, record)
            service.wait_started()
            line.send({"started": plan.run_id})
            return
        attachment = Attachment(
            line, interactive=attach.get("interactive") is True, terminal=terminal_of(attach)
        )
        service = self._services.add(plan, record, attachment.streams)
        try:
            service.wait_started()
            line.send({"started": plan.run_id})
            attachment.listen(lambda: hang_up(service))
            service.controls.ended.wait()
            final = service.record
            if final.error:
                kind = DeadlineExceeded if service.expired else VmrunError
                error = kind(final.error, hint=final.hint, details=final.details)
                line.send_frame(Kind.FAILURE, json.dumps(failure(error)).encode())
            line.send_frame(Kind.EXIT, str(service.controls.status).encode())
        finally:
            attachment.close()

    def execute(self, line: Line, request: dict[str, Any]) -> None:
        """One more process in a container; its streams follow as frames."""
        service = self._service(request)
        terminal = terminal_of(request)
        argv = _texts(request, "argv")
        if not argv:
            raise StateError("there is no command")
        process = service.controls.contained.execute(
            argv,
            env=_texts(request, "env"),
            workdir=_text(request, "workdir") or None,
            user=_user(request),
            terminal=terminal,
        )
        service.tell("run.exec", command=argv[0])
        line.send({"started": True})
        if request.get("interactive") is not True and terminal is None:
            with contextlib.suppress(VmrunError):
                process.close_stdin()
        converse(line, process)

    def copy_out(self, line: Line, request: dict[str, Any]) -> None:
        """A tar of what a container has at a path, as frames of stdout."""
        service = self._copied(request)
        path = _path(request)
        process = service.controls.contained.archive(
            path, _text(request, "name"), follow=request.get("follow") is True
        )
        service.tell("run.cp", direction="out", place=_first(path))
        line.send({"started": True})
        with contextlib.suppress(VmrunError):
            process.close_stdin()
        converse(line, process)

    def copy_in(self, line: Line, request: dict[str, Any]) -> None:
        """The frames of stdin are a tar, to be unpacked at a path of a container."""
        service = self._copied(request)
        path = _path(request)
        keep = request.get("keep") is True
        process = service.controls.contained.extract(
            path, keep=keep, directory=request.get("directory") is True
        )
        service.tell("run.cp", direction="in", place=_first(path), keep=str(keep).lower())
        line.send({"started": True})
        converse(line, process)

    def _copied(self, request: dict[str, Any]) -> TrackedRun:
        service = self._service(request)
        if service.controls.paused:
            name = service.record.name
            raise StateError(f"run {name!r} is paused", hint=f"vmrun unpause {name}")
        return service

    def signal(self, line: Line, request: dict[str, Any]) -> None:
        """Send a signal to a container."""
        service = self._service(request)
        number = request.get("signal")
        if type(number) is not int or not 1 <= number <= 64:
            raise StateError("not a signal")
        service.tell("run.kill", signal=str(number))
        service.controls.send_signal(number)
        line.send({"done": True})

    def stop(self, line: Line, request: dict[str, Any]) -> None:
        """Ask a container to end, and see to it that it does."""
        service = self._service(request)
        asked = request.get("grace")
        timeout = service.plan.workload.service.stop_timeout if asked is None else asked
        if type(timeout) not in (int, float) or not 0 <= timeout <= _LONGEST_STOP:
            raise StateError("not a time to wait")
        service.tell("run.stop", timeout=f"{timeout:g}")
        service.controls.stop(timeout, number=stop_signal(service))
        line.send({"status": service.controls.status})

    def pause(self, line: Line, request: dict[str, Any]) -> None:
        """Stop a container where it is."""
        self._service(request).pause()
        line.send({"done": True})

    def unpause(self, line: Line, request: dict[str, Any]) -> None:
        """Let it go on."""
        self._service(request).unpause()
        line.send({"done": True})

    def stats(self, line: Line, request: dict[str, Any]) -> None:
        """What a container uses now."""
        line.send({"stats": encode(self._service(request).controls.stats())})

    def wait(self, line: Line, request: dict[str, Any]) -> None:
        """Its exit status, when it has ended."""
        controls = self._service(request).controls
        controls.ended.wait()
        line.send({"status": controls.status})

    def end(self, line: Line, _request: dict[str, Any]) -> None:
        """End the guest with all that runs in it."""
        self._services.end()
        line.send({"done": True})

    def _service(self, request: dict[str, Any]) -> TrackedRun:
        return self._services.get(request.get("run"))


def hang_up(service: TrackedRun) -> None:
    """The user of an attached run has gone: nobody reads what it writes, so it ends."""
    if not service.controls.ended.is_set():
        service.controls.asked_to_stop.set()
        service.controls.contained.kill()


def terminal_of(request: dict[str, Any]) -> TerminalSize | None:
    """The size of the terminal that a request asks for."""
    raw = request.get("terminal")
    return None if raw is None else decode(TerminalSize, raw)


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name) or ""
    if not isinstance(value, str):
        raise StateError(f"{name} is no text")
    return value


def _path(request: dict[str, Any]) -> str:
    value = _text(request, "path")
    size = len(value.encode("utf-8", "replace"))
    if not value.startswith("/") or not value.isprintable() or size > _LONGEST_PATH:
        raise StateError("path is no absolute path")
    return value


def _first(path: str) -> str:
    """All that the journal hears of a path: names below may tell of whom the files are about."""
    return "/" + path.strip("/").partition("/")[0]


def _texts(request: dict[str, Any], name: str) -> tuple[str, ...]:
    value = request.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise StateError(f"{name} is no list of texts")
    return tuple(value)


def _user(request: dict[str, Any]) -> tuple[int, int] | None:
    value = request.get("user")
    if value is None:
        return None
    if not isinstance(value, list) or [type(item) for item in value] != [int, int]:
        raise StateError("user is no pair of numbers")
    return value[0], value[1]
