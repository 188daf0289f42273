"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from vmrun.cli import audit, base, catalogue, compose, image, key, policy, tenant, volume
from vmrun.cli.cp import cp_command
from vmrun.cli.doctor import doctor_command
from vmrun.cli.events import events_command
from vmrun.cli.exec import exec_command
from vmrun.cli.gc import gc_command
from vmrun.cli.guests import dial_command
from vmrun.cli.inspect import inspect_command, port_command
from vmrun.cli.lifecycle import (
    kill_command,
    pause_command,
    stop_command,
    unpause_command,
    wait_command,
)
from vmrun.cli.logs import logs_command
from vmrun.cli.output import print_error
from vmrun.cli.plan import plan_command
from vmrun.cli.ps import ps_command
from vmrun.cli.removal import rm_command
from vmrun.cli.run import run_command
from vmrun.cli.stats import stats_command
from vmrun.model.errors import EXIT_FAILED, UsageError, VmrunError

_USAGE = 2

app = typer.Typer(
    name="vmrun",
    help="Run containers inside lightweight KVM guests: verified, hardened, torn down.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", no_args_is_help=True)(run_command)
app.command("plan", no_args_is_help=True)(plan_command)
app.command("doctor")(doctor_command)
app.command("ps")(ps_command)
app.command("logs", no_args_is_help=True)(logs_command)
app.command("exec", no_args_is_help=True, context_settings={"allow_interspersed_args": False})(
    exec_command
)
app.command("cp", no_args_is_help=True)(cp_command)
app.command("stop", no_args_is_help=True)(stop_command)
app.command("kill", no_args_is_help=True)(kill_command)
app.command("pause", no_args_is_help=True)(pause_command)
app.command("unpause", no_args_is_help=True)(unpause_command)
app.command("wait", no_args_is_help=True)(wait_command)
app.command("rm", no_args_is_help=True)(rm_command)
app.command("inspect", no_args_is_help=True)(inspect_command)
app.command("stats")(stats_command)
app.command("port", no_args_is_help=True)(port_command)
app.command("events")(events_command)
app.command("gc")(gc_command)
app.command("dial", hidden=True)(dial_command)
app.add_typer(image.app, name="image")
app.add_typer(key.app, name="key")
app.add_typer(policy.app, name="policy")
app.add_typer(catalogue.app, name="catalogue")
app.add_typer(base.app, name="base")
app.add_typer(audit.app, name="audit")
app.add_typer(volume.app, name="volume")
app.add_typer(tenant.app, name="tenant")
app.add_typer(compose.app, name="compose")


@app.callback()
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
        app()
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
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return command in ("run", "exec")
