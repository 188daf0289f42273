"""Running the external programs of a build, each with a deadline."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmrun.model.errors import BaseError, DeadlineExceeded

# Program → the Debian package that has it.
PROGRAMS: Mapping[str, str] = {
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mkfs.erofs": "erofs-utils",
    "make": "make",
    "musl-gcc": "musl-tools",
}
_TAIL_LINES = 15


def require_tools() -> None:
    """Raise :class:`BaseError`, naming the packages to install, if a program is missing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({PROGRAMS[program] for program in missing}))
        raise BaseError(
            f"building a base needs {', '.join(missing)}",
            hint=f"apt-get install {packages}",
        )


def run_tool(
    arguments: Sequence[str],
    *,
    deadline: float,
    hint: str,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a program to its end; its output is shown only if it fails or takes too long.

    ``deadline`` is in seconds.
    """
    try:
        result = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline,
            env=environment,
            cwd=directory,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(
            f"{arguments[0]} took longer than {deadline:.0f} s",
            hint=hint,
            details=_tail(error.output or b""),
        ) from error
    except OSError as error:
        raise BaseError(f"cannot run {arguments[0]}: {error.strerror}", hint=hint) from error
    if result.returncode != 0:
        raise BaseError(
            f"{arguments[0]} failed with status {result.returncode}",
            hint=hint,
            details=_tail(result.stdout),
        )


def _tail(output: bytes) -> str:
    return "\n".join(output.decode(errors="replace").splitlines()[-_TAIL_LINES:])
