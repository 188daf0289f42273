"""``vmrun image``: the group; each command has a module of its own."""

from __future__ import annotations

import typer

from vmrun.cli.image_sbom import sbom_command
from vmrun.cli.image_scan import scan_command
from vmrun.cli.image_sign import sign_command
from vmrun.cli.image_store import inspect_command, ls_command, prune_command, rm_command
from vmrun.cli.image_transfer import pull_command, push_command
from vmrun.cli.image_verify import verify_command

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Pull, push, sign, verify, scan and keep track of images.",
)
app.command("pull", no_args_is_help=True)(pull_command)
app.command("push", no_args_is_help=True)(push_command)
app.command("sign", no_args_is_help=True)(sign_command)
app.command("verify", no_args_is_help=True)(verify_command)
app.command("scan", no_args_is_help=True)(scan_command)
app.command("sbom", no_args_is_help=True)(sbom_command)
app.command("ls")(ls_command)
app.command("inspect", no_args_is_help=True)(inspect_command)
app.command("rm", no_args_is_help=True)(rm_command)
app.command("prune")(prune_command)
