"""How fast an image of 200 MB is pushed and pulled, and how much memory that takes; printed only.

    .venv/bin/python -m tests.benchmarks.registry [--size MB] [--layers N]

Against Debian's docker-registry on the loopback interface, with TLS and a password. Each transfer
is a process of its own, and its peak of memory that of the whole process. Pulls are from empty
stores. What is timed is the transfer alone: with hashing and writing to disk, without judging the
layers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from images.workloads.registry import company_registry
from tests.images import LayerBlob, TestImage, file, tar
from vmrun.image.fetch import fetch, find_image
from vmrun.image.reference import parse_reference
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.push import push_image
from vmrun.image.registry.repository import Repository

_MB = 1_000_000
_MIB = 1024 * 1024


def transfer(what: str, directory: Path, target: str, cert_dir: Path, auth_file: Path) -> None:
    """Push the layout in ``directory``, or pull into it; print the figures as JSON."""
    options = RegistryOptions(cert_dirs=(cert_dir,), auth_file=auth_file)
    reference = parse_reference(target)
    if what == "push":
        source = parse_reference(f"oci:{directory / 'layout'}:demo")
        image = fetch(source, directory / "fetched")
        start = time.monotonic()
        moved = push_image(image, Repository(reference, options, push=True)).transfer
        seconds = time.monotonic() - start
    else:
        with find_image(reference, directory / "pulled", registry=options) as found:
            start = time.monotonic()
            # Only the download: fetch() would also copy, unpack and judge the layers.
            source_of = found._source
            manifest = found._manifest
            moved = source_of.prepare((manifest.config, *manifest.layers))
            seconds = time.monotonic() - start
    figures = {"bytes": moved.bytes, "seconds": seconds, "peak_mib": peak_mib()}
    print(json.dumps({**figures, "blobs": moved.moved}))


def peak_mib() -> float:
    """The most memory that this program has had. Not getrusage(2)'s ru_maxrss: that one is handed
    down by the process that started it, which has built an image in its memory."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.M)
    assert match is not None
    return int(match[1]) / 1024


def measure(what: str, directory: Path, target: str, cert_dir: Path, auth_file: Path) -> None:
    """Run one transfer in a process of its own and print a line."""
    words = [what, str(directory), target, str(cert_dir), str(auth_file)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.registry", "--transfer", *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    figures = json.loads(done.stdout)
    speed = figures["bytes"] / _MIB / figures["seconds"]
    print(
        f"{what}: {figures['bytes'] / _MIB:.0f} MiB in {figures['blobs']} blobs,"
        f" {figures['seconds']:.2f} s, {speed:.0f} MiB/s, peak {figures['peak_mib']:.0f} MiB"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=200, help="of the image, in MB")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--transfer", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.transfer:
        what, directory, target, cert_dir, auth_file = arguments.transfer
        transfer(what, Path(directory), target, Path(cert_dir), Path(auth_file))
        return
    with tempfile.TemporaryDirectory(prefix="vmrun-registry.") as name:
        root = Path(name)
        share = arguments.size * _MB // arguments.layers
        layers = (tar([file(str(n), os.urandom(share))]) for n in range(arguments.layers))
        TestImage([LayerBlob(layer, "none") for layer in layers]).write_layout(root / "layout")
        with company_registry(root / "registry") as running:
            target = f"{running.host}/bench/image:1"
            for what in ("push", "pull"):
                measure(what, root, target, running.cert_dir, running.auth_file)


if __name__ == "__main__":
    main()
