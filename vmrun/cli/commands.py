"""Which commands there are, in the order of the help, and where each of them is.

A command's module is imported when that command is called: the others would cost every call a
tenth of a second. What the help says of a command is kept here for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import typer


@dataclass(frozen=True, slots=True)
class Command:
    """``name`` of ``module`` (in this package) is a function, or ``app``, a group of commands.

    ``bare``: it means something without arguments. ``words``: options end at the first argument,
    because what follows is a command of its own.
    """

    module: str
    name: str
    help: str
    bare: bool = False
    words: bool = False
    hidden: bool = False

    def add(self, app: typer.Typer, name: str) -> None:
        """Import the command, and make it one of ``app``."""
        found = getattr(import_module(f"vmrun.cli.{self.module}"), self.name)
        if self.name == "app":
            app.add_typer(found, name=name)
            return
        settings = {"allow_interspersed_args": False} if self.words else None
        app.command(
            name, no_args_is_help=not self.bare, hidden=self.hidden, context_settings=settings
        )(found)

    def add_stand_in(self, app: typer.Typer, name: str) -> None:
        """Make the command known to ``app`` by its name and help only."""

        def stand_in() -> None:
            raise AssertionError(name)

        app.command(name, help=self.help, hidden=self.hidden)(stand_in)


def _group(module: str, text: str) -> Command:
    return Command(module, "app", text)


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "run", "run_command", "Run a container in a guest of its own, and tear the guest down."
    ),
    "plan": Command(
        "plan",
        "plan_command",
        "Print what run would do with the same options, without creating a thing.",
    ),
    "doctor": Command(
        "doctor",
        "doctor_command",
        "Say what this host can do and why, and how to remedy it.",
        bare=True,
    ),
    "ps": Command("ps", "ps_command", "List runs, the newest first.", bare=True),
    "logs": Command(
        "logs",
        "logs_command",
        "Print what a run has written: its stdout on stdout, its stderr on stderr.",
    ),
    "exec": Command(
        "exec",
        "exec_command",
        "Execute a command in a running container, confined like its first process.",
        words=True,
    ),
    "cp": Command(
        "cp",
        "cp_command",
        "Copy files between this host and a running container, as docker cp does.",
    ),
    "stop": Command(
        "lifecycle",
        "stop_command",
        "Ask runs to end, kill those that do not, and wait until their guests are gone.",
    ),
    "kill": Command("lifecycle", "kill_command", "Send runs a signal."),
    "pause": Command(
        "lifecycle",
        "pause_command",
        "Stop runs where they are: their guests' processors do not run any more.",
    ),
    "unpause": Command("lifecycle", "unpause_command", "Let paused runs go on."),
    "wait": Command(
        "lifecycle", "wait_command", "Wait until runs have ended, and print their exit statuses."
    ),
    "rm": Command(
        "removal",
        "rm_command",
        "Remove runs that have ended, with their logs, and guests that --keep has kept.",
    ),
    "inspect": Command(
        "inspect",
        "inspect_command",
        "Print all that is known of runs, as JSON: record, verdict, and what is read live.",
    ),
    "stats": Command(
        "stats", "stats_command", "Show what runs use, again and again on a terminal.", bare=True
    ),
    "port": Command("inspect", "port_command", "Print which ports of this host lead to a run."),
    "events": Command(
        "events",
        "events_command",
        "Print what happened to runs and what they live on, from the journal, oldest first.",
        bare=True,
    ),
    "gc": Command(
        "gc",
        "gc_command",
        "Remove what dead runs have left on this host, and prove that it is gone.",
        bare=True,
    ),
    "dial": Command(
        "guests", "dial_command", "Join stdin and stdout with a Unix socket.", hidden=True
    ),
    "image": _group("image", "Pull, push, sign, verify, scan and keep track of images."),
    "key": _group("key", "Keys that sign images."),
    "policy": _group(
        "policy", "Which images may run: signature policies, trust rules and the ledger."
    ),
    "catalogue": _group(
        "catalogue", "Catalogues: which digest a name has now, signed, with an expiry date."
    ),
    "base": _group("base", "Guest bases: kernel, initrd and read-only root."),
    "audit": _group("audit", "What happened here, and whether what runs may still run."),
    "volume": _group("volume", "Encrypted volumes that outlive guests."),
    "tenant": _group("tenant", "Tenants: who owns guests, and how much they may take."),
    "compose": _group("compose", "Compose files: their services in the guest of a tenant."),
}
