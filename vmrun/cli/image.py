"""``vmrun image``: the group; each command has a module of its own."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Pull, push, sign, verify, scan and keep track of images.",
)
