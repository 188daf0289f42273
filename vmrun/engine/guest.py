"""What both engines ask of a guest: paths, the limiting cgroup, and the commands for them.

Everything here is pure: commands are text for the guest's POSIX shell. Every word that is not
a constant of this module is quoted or is a digest, a number or a run id.
"""

from __future__ import annotations

import shlex

from vmrun.model.digest import Digest
from vmrun.model.image import Compression, Descriptor, Layer
from vmrun.model.quantity import CPU_PERIOD, cpu_quota
from vmrun.model.workload import Limits
from vmrun.run.ports import TerminalSize

TOOL = "/usr/lib/vmrun/guest"
DOCKER_SOCKET = "/run/docker.sock"
WORK = "/var/lib/vmrun"
"""Where runs have their directories: a tmpfs that programs may be executed from."""

_CGROUPS = "/sys/fs/cgroup"

_DECOMPRESS = {
    Compression.NONE: "cat",
    Compression.GZIP: "zcat",
    Compression.ZSTD: "zstd -qdc",
}


def run_directory(run_id: str) -> str:
    """Where a run keeps its bundle."""
    return f"{WORK}/{run_id}"


def cgroup_of(run_id: str) -> str:
    """The cgroup that limits a run, below the cgroup file system's root. The engine makes the
    container's own cgroup inside it and removes that when the container exits; this one stays,
    and with it the counters."""
    return f"/vmrun/{run_id}"


def blob_argument(blob: Descriptor) -> str:
    """A blob as ``guest receive`` is told of it."""
    return f"{blob.digest}:{blob.size}"


def kill_command(run_id: str) -> str:
    """Kills all that runs in a run's cgroup at once (cgroups(7), ``cgroup.kill``)."""
    return f"echo 1 >{_CGROUPS}{cgroup_of(run_id)}/cgroup.kill"


def gate_command(target: str, run_id: str, limits: Limits) -> str:
    """Executes the guest tool's gate on a pid or pid-file; the shell is replaced by it. It makes
    the limiting cgroup first, and sets the limits there."""
    return shlex.join(
        [
            "exec",
            TOOL,
            "gate",
            target,
            cgroup_of(run_id),
            f"memory={limits.memory}",
            f"pids={limits.pids}",
            f"cpu={cpu_quota(limits.cpus)}:{CPU_PERIOD}",
        ]
    )


def again_command(run_id: str, limits: Limits) -> str:
    """Becomes the gate of a bundle that has been run before."""
    directory = run_directory(run_id)
    gate = gate_command(f"{directory}/pid", run_id, limits)
    return f"rm -f {directory}/pid {directory}/crun.log && {gate}"


def discard_command(run_id: str) -> str:
    """Removes what a run that has ended leaves in its guest."""
    cgroup = f"{_CGROUPS}{cgroup_of(run_id)}"
    return (
        f"rm -rf {run_directory(run_id)}; "
        f"for d in {cgroup}/*/ {cgroup}; do [ ! -d $d ] || rmdir $d; done"
    )


def freeze_command(run_id: str, *, frozen: bool) -> str:
    """Freezes or thaws a run's cgroup (cgroups(7), ``cgroup.freeze``)."""
    return f"echo {int(frozen)} >{_CGROUPS}{cgroup_of(run_id)}/cgroup.freeze"


def counters_command(run_id: str) -> str:
    """Prints the counters of a run's cgroup, one ``name value`` a line."""
    directory = f"{_CGROUPS}{cgroup_of(run_id)}"
    return (
        f"cd {directory} && "
        "for f in memory.current memory.peak pids.current; do echo $f $(cat $f); done && "
        "grep -E '^(usage_usec) ' cpu.stat"
    )


def dial_command(socket: str = DOCKER_SOCKET) -> str:
    """Executes the guest tool's joining of its streams with a Unix socket."""
    return shlex.join(["exec", TOOL, "dial", socket])


def _apply(layer: Layer, *, whiteouts: bool) -> str:
    option = "--whiteouts " if whiteouts else ""
    blob = f"blobs/{layer.blob.digest.hex}"
    return f"{_DECOMPRESS[layer.compression]} <{blob} | {TOOL} apply {option}rootfs"


def _layer_commands(layer: Layer, *, lowest: bool) -> list[str]:
    blob = f"blobs/{layer.blob.digest.hex}"
    # What a layer removes was put there by those below it, so its whiteouts come first and the
    # lowest layer has nothing to remove.
    removal = [] if lowest else [_apply(layer, whiteouts=True)]
    return [
        f"{TOOL} receive blobs {blob_argument(layer.blob)}",
        *removal,
        _apply(layer, whiteouts=False),
        f"rm {blob}",
    ]


def crun_command(run_id: str, terminal: TerminalSize | None) -> str:
    """Runs the bundle. ``--log`` keeps crun's own words apart from the workload's stderr.

    The size of the terminal, known only now, goes into the configuration: crun copies the size
    of its own terminal to the container's only when it changes.
    """
    directory = run_directory(run_id)
    command = shlex.join(
        [
            "exec",
            "crun",
            "--cgroup-manager=cgroupfs",
            f"--root={directory}/crun",
            f"--log={directory}/crun.log",
            "--log-format=json",
            "run",
            f"--bundle={directory}",
            f"--pid-file={directory}/pid",
            run_id,
        ]
    )
    if terminal is None:
        return command
    size = f'"consoleSize":{{"height":{terminal.rows:d},"width":{terminal.columns:d}}}'
    # A quote inside one of its strings is escaped, so this can match nothing but the key.
    edit = f's/"terminal":true/"terminal":true,{size}/'
    return f"sed -i {shlex.quote(edit)} {directory}/config.json && {command}"


def crun_log_command(run_id: str) -> str:
    """Prints what crun logged, as far as anyone would read."""
    return f"head -c 16384 {run_directory(run_id)}/crun.log"


def bundle_command(
    run_id: str, config: tuple[Digest, int], layers: tuple[Layer, ...], limits: Limits
) -> str:
    """Makes a bundle of the blobs that follow on stdin (``config.json`` first, then each layer
    as often as it is named), prints the block ``ready``, and becomes the gate.

    Each blob is applied and removed before the next one arrives: they lie in the guest's
    memory, and so only one at a time does. Any failure ends the shell with that command's
    status; ``pipefail`` includes the decompressor's.
    """
    digest, size = config
    directory = run_directory(run_id)
    steps = [
        "set -o pipefail",
        f"mkdir -m 700 {directory}",
        f"cd {directory}",
        "mkdir -m 755 rootfs",
        f"{TOOL} receive blobs {digest}:{size}",
        f"mv blobs/{digest.hex} config.json",
    ]
    for index, layer in enumerate(layers):
        steps += _layer_commands(layer, lowest=index == 0)
    steps += ["printf 'ready\\n\\n'", gate_command(f"{directory}/pid", run_id, limits)]
    return " && ".join(steps)
