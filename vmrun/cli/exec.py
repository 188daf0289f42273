"""``vmrun exec``: one more process in a run's container."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from vmrun.cli.output import print_json
from vmrun.cli.runs import Run, open_book
from vmrun.model.errors import UsageError

_HIGHEST = (1 << 32) - 2


def exec_command(
    run: Run,
    command: Annotated[
        list[str], typer.Argument(help="The command and its arguments.", show_default=False)
    ],
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Pass stdin to it.")
    ] = False,
    terminal: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", help="KEY=VALUE, or KEY to pass the host's value on."),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", help="Directory to start in.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", help="UID[:GID]; not root unless the run is.")
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the status on stdout; the process's output: stderr."),
    ] = False,
) -> None:
    """Execute a command in a running container, confined like its first process.

    Exits with the command's own status; 125 vmrun failed, 126 and 127 as docker.
    """
    # Written as with run, or as with docker: nothing after RUN is an option of ours.
    argv = command[1:] if command[0] == "--" else command
    if not argv:
        raise UsageError("no command to execute", hint="vmrun exec RUN COMMAND…")
    variables = [_variable(text) for text in env or ()]
    ids = None if user is None else parse_ids(user)
    if workdir is not None and not workdir.startswith("/"):
        raise UsageError(f"--workdir {workdir[:80]!r} is not absolute", hint="e.g. /srv")
    if json and terminal:
        raise UsageError("--json and -t exclude each other", hint="leave one of them out")

    from vmrun.cli.attached import attach, wanted_terminal
    from vmrun.supervisor.client import ask, dial

    size = wanted_terminal(interactive=interactive, terminal=terminal)
    book = open_book()
    record = book.must_run(run)
    line = dial(book.guest(record))
    try:
        ask(
            line,
            "exec",
            run=record.run_id,
            argv=argv,
            env=[text for text in variables if text],
            workdir=workdir,
            user=ids,
            terminal=size,
            interactive=interactive,
        )
        status = attach(line, interactive=interactive, terminal=terminal, stdout_is_stderr=json)
    finally:
        line.close()
    if json:
        print_json({"run": record.run_id, "name": record.name, "exit_status": status})
    raise typer.Exit(status)


def parse_ids(text: str) -> list[int]:
    """``UID`` or ``UID:GID``; a group that is not named has the user's number. Raises
    :class:`UsageError`."""
    match = re.fullmatch("([0-9]{1,10})(?::([0-9]{1,10}))?", text)
    ids = [int(match[1]), int(match[2] or match[1])] if match else []
    if not ids or max(ids) > _HIGHEST:
        raise UsageError(
            f"--user: not a uid: {text[:40]!r}",
            hint="UID or UID:GID; names are the image's, and 'vmrun run --user' knows them",
        )
    return ids


def _variable(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not key or "\0" in text:
        raise UsageError(f"--env: not KEY=VALUE: {text[:80]!r}", hint="e.g. --env MODE=test")
    if equals:
        return text
    return f"{key}={os.environ[key]}" if key in os.environ else ""
