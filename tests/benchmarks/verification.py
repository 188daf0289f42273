"""What verifying a signed image costs, beside sha256sum of the same bytes; nothing is asserted.

    .venv/bin/python -m tests.benchmarks.verification [--runs N] [--size MIB] [--json]

One layer of random bytes in an OCI layout with a signature in both formats. The whole command is
timed, and its parts in this process: to decide (find the manifest, read and check the signatures)
and to fetch (hash and copy every byte, and judge every entry of the layer).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.images import file
from tests.images import image as make_image
from vmrun.image.fetch import find_image
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.image.reference import parse_reference
from vmrun.model.digest import Digest
from vmrun.model.image import Descriptor
from vmrun.policy.edit import FIRST_POLICY, allow
from vmrun.policy.signature_policy import parse_policy
from vmrun.policy.trust_rules import TrustRules
from vmrun.trust.decision import Subject, decide
from vmrun.trust.files import TrustLayer
from vmrun.trust.keys import PrivateKey
from vmrun.trust.ledger import Ledger
from vmrun.trust.signatures import collect
from vmrun.trust.signing import sign_image

NAME = "registry.example.com/app:1"
VMRUN = str(Path(sys.executable).with_name("vmrun"))


class Bench:
    """A signed image of one layer, and a policy that accepts it."""

    def __init__(self, root: Path, size: int, compression: str) -> None:
        self.root, self.layout = root, root / "image"
        root.mkdir()
        built = make_image([file("data", os.urandom(size))], compression=compression)
        built.write_layout(self.layout)
        self.blob = self.layout / "blobs" / "sha256" / Digest.of(built.layers[0].blob).hex
        entry = built.index_entry()
        manifest = Descriptor(entry["mediaType"], Digest.parse(entry["digest"]), entry["size"])
        key = PrivateKey.generate()
        sign_image(LayoutArtifacts(self.layout), manifest, NAME, key, now=time.time())
        data = allow(
            FIRST_POLICY, "policy", transport="oci", scope=str(root), keys=[key.public.pem],
            reference=NAME,
        )  # fmt: skip
        self.policy = root / "policy.json"
        self.policy.write_bytes(data)
        self.policy.chmod(0o644)
        self.layers = (TrustLayer(parse_policy(data, "x"), TrustRules(), ()),)
        self.reference = parse_reference(f"oci:{self.layout}:demo")

    def sha256sum(self) -> float:
        return timed(lambda: subprocess.run(["sha256sum", self.blob], check=True, **_QUIET))

    def command(self) -> float:
        words = ["image", "verify", "--policy", str(self.policy), str(self.reference)]
        environment = {**os.environ, "VMRUN_STATE_DIR": str(self.root / "state")}
        return timed(lambda: subprocess.run([VMRUN, *words], check=True, env=environment, **_QUIET))

    def parts(self) -> tuple[float, float, int]:
        """Seconds to decide, seconds to fetch, and bytes that this process read meanwhile."""
        with (
            tempfile.TemporaryDirectory(dir=self.root) as scratch,
            find_image(self.reference, Path(scratch) / "image") as found,
        ):
            before = read_bytes()
            decided = timed(lambda: self._decide(found.digests))
            fetched = timed(found.fetch)
            return decided, fetched, read_bytes() - before

    def _decide(self, digests: object) -> None:
        signatures = collect(LayoutArtifacts(self.layout), digests.lineage)  # type: ignore[attr-defined]
        subject = Subject(self.reference, digests, signatures)  # type: ignore[arg-type]
        decide(subject, self.layers, Ledger(self.root / "ledger"), now=time.time())


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 300}


def timed(do: Callable[[], object]) -> float:
    start = time.monotonic()
    do()
    return time.monotonic() - start


def read_bytes() -> int:
    """Bytes that this process has read with read(2) and its kin so far (proc(5), io)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def cpu_of(do: Callable[[], object]) -> float:
    """Seconds of processor time of the commands that ``do`` runs: on a busy host the better
    measure."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    do()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(root: Path, size: int, compression: str, runs: int) -> dict[str, float]:
    bench, small = Bench(root / "large", size, compression), Bench(root / "small", 1, compression)
    for warm in (bench.command, bench.sha256sum, small.command):
        warm()

    def median(do: Callable[[], float]) -> float:
        return statistics.median(do() for _ in range(runs))

    hashed, command, fixed = map(median, (bench.sha256sum, bench.command, small.command))
    cpu = [
        median(lambda do=do: cpu_of(do)) for do in (bench.sha256sum, bench.command, small.command)
    ]
    parts = [bench.parts() for _ in range(runs)]
    decided, fetched = (statistics.median(part[at] for part in parts) for at in (0, 1))
    return {
        "sha256sum, s": hashed,
        "vmrun image verify, s": command,
        "the same of 1 byte, s": fixed,
        "in process: to decide, s": decided,
        "in process: to fetch, s": fetched,
        "verify / sha256sum": command / hashed,
        "(verify - 1 byte) / sha256sum": (command - fixed) / hashed,
        "to fetch / sha256sum": fetched / hashed,
        "verify / sha256sum, CPU": cpu[1] / cpu[0],
        "(verify - 1 byte) / ..., CPU": (cpu[1] - cpu[2]) / cpu[0],
        "bytes read / blob": parts[-1][2] / bench.blob.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", type=int, default=100, help="MiB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    for compression in ("none", "gzip", "zstd"):
        with tempfile.TemporaryDirectory() as root:
            found[compression] = measure(Path(root), options.size << 20, compression, options.runs)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{f'{options.size} MiB, one layer':32}" + "".join(f"{name:>10}" for name in found))
    for label in found["none"]:
        print(f"{label:32}" + "".join(f"{figures[label]:10.3f}" for figures in found.values()))


if __name__ == "__main__":
    main()
