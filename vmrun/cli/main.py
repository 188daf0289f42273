"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vmrun.cli import base
from vmrun.cli.guests import dial_command, rm_command
from vmrun.cli.output import print_error
from vmrun.cli.run import run_command
from vmrun.model.errors import VmrunError

app = typer.Typer(
    name="vmrun",
    help="Run containers inside lightweight KVM guests: verified, hardened, torn down.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", no_args_is_help=True)(run_command)
app.command("rm", no_args_is_help=True)(rm_command)
app.command("dial", hidden=True)(dial_command)
app.add_typer(base.app, name="base")


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
    status = 0
    try:
        status = app(standalone_mode=False) or 0
    except VmrunError as error:
        if os.environ.get("VMRUN_DEBUG"):
            raise
        print_error(error)
        status = error.exit_status
    except typer.Abort:
        status = 130
    sys.exit(status)
