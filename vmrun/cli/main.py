"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from vmrun.cli.commands import COMMANDS
from vmrun.cli.output import print_error
from vmrun.model.errors import EXIT_FAILED, UsageError, VmrunError

_USAGE = 2


def make_app(*, only: str | None = None) -> typer.Typer:
    """The command line: whole, or with the command ``only`` and the names of the others."""
    app = typer.Typer(
        name="vmrun",
        help="Run containers inside lightweight KVM guests: verified, hardened, torn down.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name, command in COMMANDS.items():
        if only is None or name == only:
            command.add(app, name)
        else:
            command.add_stand_in(app, name)
    return app


def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Show vmrun's version.")] = False,
) -> None:
    """Options before the command."""
    if debug:
        os.environ["VMRUN_DEBUG"] = "1"
    if version:
        from importlib.metadata import version as installed

        print(f"vmrun {installed('vmrun')}")
        raise typer.Exit


def main() -> None:
    """Entry point: a :class:`VmrunError` becomes one line, a hint and an exit status."""
    # QEMU runs as a user of its own, whom a narrow umask would lock out of the guest's directory;
    # what is private is made so by name.
    os.umask(0o022)
    sys.argv[1:] = _with_boolean_values(sys.argv[1:])
    try:
        make_app(only=_command())()
    except VmrunError as error:
        if os.environ.get("VMRUN_DEBUG"):
            traceback.print_exception(error)
        print_error(error)
        sys.exit(_status(error))
    except SystemExit as end:
        if end.code == _USAGE and _runs():
            sys.exit(EXIT_FAILED)
        raise


def _with_boolean_values(words: list[str]) -> list[str]:
    """``--read-only=false``, as docker takes it, for a parser that knows --no-read-only only."""
    end = words.index("--") if "--" in words else len(words)
    spellings = {
        f"--read-only={value}": "--read-only" if truth else "--no-read-only"
        for truth, values in ((True, ("true", "1")), (False, ("false", "0")))
        for value in values
    }
    return [spellings.get(word, word) for word in words[:end]] + words[end:]


def _status(error: VmrunError) -> int:
    """``run`` and ``exec`` have docker's exit statuses; other commands 2 for bad usage and 1
    otherwise."""
    if _runs():
        return error.exit_status
    return _USAGE if isinstance(error, UsageError) else 1


def _runs() -> bool:
    return _command() in ("run", "exec")


def _command() -> str | None:
    """The command that was typed, empty for none; None where all are asked for, by a shell that
    completes."""
    if "_VMRUN_COMPLETE" in os.environ:
        return None
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")
