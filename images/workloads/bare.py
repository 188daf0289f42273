"""Runs the demo image on the host itself, with the host's container runtime, for comparison.

docker if its daemon answers, else crun or runc with the configuration that their own ``spec``
command writes (crun does not run on hosts that mix both versions of cgroups, runc does).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 60


class NoRuntime(Exception):
    """No container runtime of the host could run the image."""


@dataclass(frozen=True)
class BareRun:
    """Which runtime ran it, and what it printed."""

    runtime: str
    output: str


def run_bare(layout: Path, archive: Path, name: str, script: str, scratch: Path) -> BareRun:
    """Run ``script`` in the image on this host. ``layout`` and ``archive`` hold the same image.

    Raises :class:`NoRuntime` with the reason of each runtime that was tried.
    """
    attempts: tuple[Callable[[], BareRun], ...] = (
        lambda: _docker(archive, name, script),
        lambda: _bundle("crun", ["--cgroup-manager=disabled"], layout, script, scratch),
        lambda: _bundle("runc", [], layout, script, scratch),
    )
    reasons = []
    for attempt in attempts:
        try:
            return attempt()
        except NoRuntime as reason:
            reasons.append(str(reason))
    raise NoRuntime("; ".join(reasons))


def _docker(archive: Path, name: str, script: str) -> BareRun:
    if shutil.which("docker") is None:
        raise NoRuntime("docker is not installed")
    version = _output("docker", ["docker", "version", "--format", "{{.Server.Version}}"])
    had = subprocess.run(
        ["docker", "image", "inspect", name],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    _output("docker", ["docker", "load", "--quiet", "--input", str(archive)])
    try:
        output = _output("docker", ["docker", "run", "--rm", name, "sh", "-c", script])
    finally:
        if had.returncode != 0:
            subprocess.run(
                ["docker", "rmi", "--force", name], stdout=subprocess.DEVNULL, check=False
            )
    return BareRun(f"docker {version.strip()}", output)


def _bundle(runtime: str, options: list[str], layout: Path, script: str, scratch: Path) -> BareRun:
    if shutil.which(runtime) is None:
        raise NoRuntime(f"{runtime} is not installed")
    version = _output(runtime, [runtime, "--version"]).split()[2]
    rootless = os.geteuid() != 0
    with tempfile.TemporaryDirectory(prefix="bare-", dir=scratch) as bundle:
        _unpack(layout, Path(bundle, "rootfs"))
        spec = [runtime, "spec", *(["--rootless"] if rootless else [])]
        _output(runtime, spec, directory=bundle)
        _adjust(Path(bundle, "config.json"), script)
        command = [runtime, *options, f"--root={bundle}/state", "run", f"--bundle={bundle}"]
        output = _output(runtime, [*command, Path(bundle).name], directory=bundle)
    return BareRun(f"{runtime} {version}" + (", rootless" if rootless else ""), output)


def _adjust(config: Path, script: str) -> None:
    """Only what the run needs: the command, and no terminal."""
    spec = json.loads(config.read_text())
    spec["process"]["terminal"] = False
    spec["process"]["args"] = ["sh", "-c", script]
    config.write_text(json.dumps(spec))


def _unpack(layout: Path, root: Path) -> None:
    """The image has one layer, and its bytes are our own."""
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_text())
    root.mkdir()
    for layer in manifest["layers"]:
        blob = _blob(layout, layer["digest"])
        _output("tar", ["tar", "-xf", str(blob), "-z", "--numeric-owner", "-C", str(root)])


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _output(runtime: str, command: list[str], directory: str | None = None) -> str:
    try:
        finished = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoRuntime(f"{runtime}: {error}") from error
    if finished.returncode != 0:
        said = (finished.stderr.strip().splitlines() or [f"status {finished.returncode}"])[-1]
        raise NoRuntime(f"{runtime} cannot run it: {said[:200]}")
    return finished.stdout
