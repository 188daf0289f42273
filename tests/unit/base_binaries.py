"""Compiles the static binaries of a base once a test session."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from vmrun.base.recipe import recipe_directory


@functools.cache
def binaries() -> Path:
    """The directory of the compiled binaries; skips without a musl compiler.

    The guest tool looks for the gate beside itself, and for cgroups in ``cgroup`` there.
    """
    if shutil.which("musl-gcc") is None:
        pytest.skip("needs musl-gcc")
    output = Path(tempfile.mkdtemp(prefix="vmrun-binaries-"))
    subprocess.run(
        [
            "make",
            "--silent",
            "-C",
            str(recipe_directory() / "src"),
            f"OUT={output}",
            f"GATE_PATH={output}/gate",
            f"CGROUP_ROOT={output}/cgroup",
        ],
        check=True,
        timeout=300,
    )
    return output


def guest(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the guest tool."""
    return subprocess.run(
        [binaries() / "guest", *arguments], input=stdin, capture_output=True, timeout=60
    )
