"""Help and bad usage are answered at once: heavy libraries are loaded by what needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vmrun.cli.commands import COMMANDS
from vmrun.cli.main import make_app

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = (
    "libvirt",
    "paramiko",
    "docker",
    "cryptography",
    "zstandard",
    "rich",
    "requests",
    "urllib3",
    "tuf",
    "univers",
    "pydantic",
)

# Runs the command line as it is, then says what was loaded.
PROGRAM = """
import runpy, sys
sys.argv = ["vmrun", *sys.argv[1:]]
try:
    runpy.run_module("vmrun", run_name="__main__")
except SystemExit:
    pass
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "VMRUN_DEBUG"},
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("LOADED ")
    return set(last.split()[1:])


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("plan", "--help"),
        ("doctor", "--help"),
        ("rm", "--help"),
        ("base", "--help"),
        ("base", "build", "--help"),
        ("run", "--memory", "lots", "oci:/x"),
        ("run", "no-transport"),
    ],
    ids=" ".join,
)
def test_no_heavy_library_is_loaded(words: tuple[str, ...]) -> None:
    found = loaded(*words)
    assert "typer" in found
    assert found.isdisjoint(HEAVY)


def test_the_check_would_notice() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import vmrun.run.pipeline, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=REPOSITORY,
    )
    assert {"libvirt", "paramiko", "cryptography"} <= set(done.stdout.split())


def test_the_help_says_what_each_command_says_of_itself() -> None:
    """The texts are kept beside the commands' names, so that the help imports no command."""
    whole = typer.main.get_command(make_app())
    quick = typer.main.get_command(make_app(only=""))
    assert list(whole.commands) == list(quick.commands) == list(COMMANDS)
    for name, command in whole.commands.items():
        first = (command.help or "").partition("\n\n")[0].replace("\n", " ")
        assert quick.commands[name].help == first, name
        assert quick.commands[name].hidden == command.hidden
