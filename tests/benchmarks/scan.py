"""How long a scan takes, measured on this host and printed; nothing is asserted.

    .venv/bin/python -m tests.benchmarks.scan [--packages N] [--advisories N] [--runs N]

An image of Debian with N packages of half as many sources, against a database of that many
advisories that is made up for it, and databases of PyPI and npm. Each time is a whole command,
from its start to its end. ``cold`` has no index of the databases yet, ``warm`` has them but no
stored scan, ``again`` has both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

from tests.images import directory, file, image

VMRUN = [sys.executable, "-m", "vmrun"]
TARGET = 3.0


def write_image(path: Path, packages: int) -> None:
    """An image of Debian with so many packages, two of each source."""
    status = "".join(
        f"Package: lib{n}\nStatus: install ok installed\nArchitecture: amd64\n"
        f"Source: source{n // 2}\nVersion: 2.36-9+deb12u{n % 9}\n\n"
        for n in range(packages)
    )
    image(
        [
            directory("etc"),
            file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            file("etc/os-release", b'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'),
            file("var/lib/dpkg/status", status.encode()),
            file("usr/lib/node_modules/x/package.json", b'{"name": "x", "version": "1.0.0"}'),
            file("opt/y-1.0.dist-info/METADATA", b"Name: y\nVersion: 1.0\n\n"),
        ]
    ).write_layout(path)


def write_databases(folder: Path, advisories: int, sources: int) -> None:
    """Half of the advisories are about the image's sources, one in ten of which finds something."""
    now = datetime.fromtimestamp(time.time() - 3600, UTC).isoformat()
    names = [f"source{n}" for n in range(sources * 2)]
    for ecosystem, count in (("Debian:12", advisories), ("PyPI", 2000), ("npm", 2000)):
        (folder / ecosystem).mkdir(parents=True)
        with zipfile.ZipFile(folder / ecosystem / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for n in range(count):
                fixed = "9" if n % 10 == 0 else "1.0-1"
                archive.writestr(
                    f"T-{n}.json", json.dumps(advisory(n, ecosystem, names, fixed, now))
                )


def advisory(n: int, ecosystem: str, names: list[str], fixed: str, now: str) -> dict[str, object]:
    """An advisory of about the size that Debian's have."""
    events = [{"introduced": "0"}, {"fixed": fixed}]
    return {
        "id": f"T-{n}",
        "modified": now,
        "aliases": [f"CVE-{n}"],
        "details": "text " * 150,
        "affected": [
            {
                "package": {"ecosystem": ecosystem, "name": names[n % len(names)]},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
                "ecosystem_specific": {"urgency": "medium"},
            }
        ],
    }


def scan_seconds(scratch: Path) -> tuple[float, float]:
    """By the clock, and of processors: a busy host has more of the first."""
    report = scratch / "report.json"
    report.unlink(missing_ok=True)
    start, used = time.monotonic(), children_seconds()
    done = subprocess.run(
        [*VMRUN, "image", "scan", "--no-debian-suite", "--advisories", f"{scratch}/advisories",
         "--json", "--output", str(report), f"oci:{scratch}/image"],
        env={**os.environ, "VMRUN_STATE_DIR": f"{scratch}/state"},
        stderr=subprocess.PIPE, check=False, timeout=600,
    )  # fmt: skip
    taken = time.monotonic() - start, children_seconds() - used
    if not report.exists():
        sys.exit(done.stderr.decode())
    return taken


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=int, default=300)
    parser.add_argument("--advisories", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        scratch = Path(path)
        write_image(scratch / "image", options.packages)
        write_databases(scratch / "advisories", options.advisories, options.packages // 2)
        times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": [], "again": []}
        times["cold"].append(scan_seconds(scratch))
        for _ in range(options.runs):
            shutil.rmtree(scratch / "state" / "scans")
            times["warm"].append(scan_seconds(scratch))
            times["again"].append(scan_seconds(scratch))
        report = json.loads((scratch / "report.json").read_text())
        index = sum(f.stat().st_size for f in (scratch / "state/cache/advisories").iterdir())
    found = report["scan"]
    print(f"{found['packages']} packages, {len(found['findings'])} findings, {report['verdict']}")
    print(f"{sum(d['advisories'] for d in found['databases'])} advisories, index {index >> 20} MiB")
    for name, values in times.items():
        seconds, used = zip(*values, strict=True)
        target = f"  target {TARGET:g}" if name == "warm" else ""
        print(
            f"{name:6} {min(seconds):6.2f} to {max(seconds):6.2f} s"
            f" ({min(used):.2f} to {max(used):.2f} of a processor){target}"
        )


if __name__ == "__main__":
    main()
