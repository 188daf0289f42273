"""What a container executes: Docker's rules for the command line, execvp(3) for the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmrun.image.tree import LookupFailed, NoEntry, resolve
from vmrun.model.errors import CommandNotExecutable, CommandNotFound, ImageError, UsageError
from vmrun.model.image import FileTree, ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What Docker sets when an image sets no PATH."""


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments, and the file in the image that executing them would start."""

    argv: tuple[str, ...]
    executable: str


def resolve_command(
    config: ImageConfig,
    tree: FileTree,
    command: Sequence[str],
    *,
    entrypoint: Sequence[str] | None = None,
    env: Sequence[str] | None = None,
    working_dir: str | None = None,
) -> Command:
    """The command of a container of this image.

    ``command`` replaces the image's Cmd when it is not empty; the image's Entrypoint goes
    before either. An ``entrypoint`` of the caller's replaces both of the image's. ``env``
    and ``working_dir`` are the container's, when they differ from the image's. Raises
    :class:`CommandNotFound` or :class:`CommandNotExecutable`.
    """
    if entrypoint is None:
        argv = (*config.entrypoint, *(command or config.cmd))
    else:
        argv = (*entrypoint, *command)
    if not argv:
        raise ImageError(
            "no command: the image sets neither Entrypoint nor Cmd",
            hint="give one after the reference: vmrun run REFERENCE -- COMMAND",
        )
    if any("\0" in argument for argument in argv):
        raise UsageError("an argument of the command holds a NUL character")
    here = working_dir or config.working_dir
    path = _search_path(config.env if env is None else env)
    return Command(argv, _find(argv[0], tree, path, here))


def _search_path(env: Sequence[str]) -> str:
    # The last setting counts, as in a container's environment.
    for setting in reversed(env):
        if setting.startswith("PATH="):
            return setting.removeprefix("PATH=")
    return DEFAULT_PATH


def _find(name: str, tree: FileTree, path: str, here: str) -> str:
    """As execvp(3): the first file that could be executed; else what stood in the way."""
    obstacle = ""
    for candidate in _candidates(name, path):
        try:
            found = resolve(tree, candidate, working_dir=here)
        except NoEntry:
            continue
        except LookupFailed:
            raise _not_executable(name, f"{candidate!r} is a loop of links") from None
        if found.entry.kind == "file" and found.entry.mode & 0o111:
            return found.path
        obstacle = obstacle or _obstacle(found.path, found.entry.kind)
    if obstacle:
        raise _not_executable(name, obstacle)
    where = "" if "/" in name else f" in PATH {path[:300]!r}"
    raise CommandNotFound(
        f"the image has no command {name[:200]!r}{where}",
        hint="check the spelling, or give the path of a command inside the image",
    )


def _candidates(name: str, path: str) -> Iterator[str]:
    if "/" in name:
        yield name
    if "/" in name or not name:
        return
    for directory in path.split(":"):
        # An empty element is the working directory.
        yield f"{directory}/{name}" if directory else name


def _obstacle(path: str, kind: str) -> str:
    return f"{path!r} is a directory" if kind == "dir" else f"{path!r} has no execute permission"


def _not_executable(name: str, why: str) -> CommandNotExecutable:
    return CommandNotExecutable(
        f"the image's command {name[:200]!r} cannot be executed: {why}",
        hint="name a file that has execute permission (any x bit; root needs one too)",
    )
