"""``vmrun base``: build, list, check and remove guest bases."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from vmrun.cli.output import note, print_json, table
from vmrun.model.base import Base, Flavour
from vmrun.model.errors import BaseError
from vmrun.model.quantity import format_size
from vmrun.settings import load_settings

app = typer.Typer(
    help="Guest bases: kernel, initrd and read-only root.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("build")
def build_command(
    flavour: Annotated[Flavour, typer.Option(help="minimal: crun; docker: dockerd.")] = (
        Flavour.MINIMAL
    ),
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing when there is one of the same recipe.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(help="Debian mirror; default: the package tools' own.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json: Json = False,
) -> None:
    """Build a base from Debian packages and make it its flavour's current one."""
    from vmrun.base.build import build_base
    from vmrun.base.recipe import load_recipe, recipe_directory
    from vmrun.base.store import find_base

    directories = load_settings().directories
    if if_missing:
        try:
            base = find_base(directories.bases, flavour)
        except BaseError:
            base = None
        if base is not None and base.recipe == load_recipe(recipe_directory(), flavour).digest:
            _print(base, json=json)
            return
    base = build_base(
        flavour,
        directories.bases[0],
        directories.cache / "base",
        mirror=mirror,
        on_step=_silent if quiet else _progress(),
    )
    _print(base, json=json)


@app.command("list")
def list_command(json: Json = False) -> None:
    """List the bases, the current one of each flavour marked."""
    from vmrun.base.store import find_base, list_bases

    directories = load_settings().directories
    bases = list_bases(directories.bases)
    if json:
        print_json(bases)
        return
    current = set()
    for flavour in Flavour:
        try:
            current.add(find_base(directories.bases, flavour).digest)
        except BaseError:
            continue
    rows = [
        (
            base.digest.short,
            str(base.flavour),
            "*" if base.digest in current else "",
            base.kernel_release,
            str(len(base.packages)),
            format_size(sum(file.size for file in base.files.values())),
        )
        for base in bases
    ]
    print(table(rows, header=("digest", "flavour", "current", "kernel", "packages", "size")))


@app.command("verify")
def verify_command(
    selector: Annotated[
        str | None, typer.Argument(help="A flavour or digest; default: every base.")
    ] = None,
    json: Json = False,
) -> None:
    """Hash every file of a base again and compare it with its manifest."""
    from vmrun.base.store import find_base, list_bases, verify_base

    directories = load_settings().directories
    bases = (
        list_bases(directories.bases)
        if selector is None
        else [find_base(directories.bases, selector)]
    )
    if not bases:
        raise BaseError("there is no base", hint="build one: vmrun base build")
    for base in bases:
        verify_base(base)
    if json:
        print_json([{"digest": base.digest, "flavour": base.flavour, "ok": True} for base in bases])
        return
    for base in bases:
        print(f"{base.digest.short}  {base.flavour}  ok")


@app.command("rm")
def rm_command(
    selector: Annotated[str, typer.Argument(help="A flavour or digest.")],
) -> None:
    """Remove a base; guests that run from it go on."""
    from vmrun.base.store import find_base, remove_base

    directories = load_settings().directories
    base = find_base(directories.bases, selector)
    remove_base(base)
    print(base.digest)


def _print(base: Base, *, json: bool) -> None:
    if json:
        print_json(base)
    else:
        print(base.digest)


def _silent(_name: str, _fraction: float) -> None:
    return


def _progress() -> Callable[[str, float], None]:
    return _bar if sys.stderr.isatty() else _lines()


def _bar(name: str, fraction: float) -> None:
    width = 30
    done = round(width * fraction)
    end = "\n" if fraction >= 1 else ""
    sys.stderr.write(f"\r\x1b[K[{'#' * done}{'.' * (width - done)}] {fraction:4.0%} {name}{end}")
    sys.stderr.flush()


def _lines() -> Callable[[str, float], None]:
    said: set[str] = set()

    def say(name: str, _fraction: float) -> None:
        if name not in said:
            said.add(name)
            note(name)

    return say
