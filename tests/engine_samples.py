"""Values that the engine tests share."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

from vmrun.model.base import Base, Flavour, Verity
from vmrun.model.digest import Digest
from vmrun.model.image import (
    Compression,
    Descriptor,
    FileTree,
    Image,
    ImageConfig,
    Layer,
    Reference,
    Transport,
)
from vmrun.model.plan import (
    Accelerator,
    ContainerPlan,
    GuestPlan,
    HostFacts,
    MemoryPlan,
    Plan,
    Tmpfs,
)
from vmrun.model.workload import Limits, Workload
from vmrun.policy.profiles import MASKED_PATHS, READONLY_PATHS

RUN_ID = "0123456789ab"


def container_plan(**changes: object) -> ContainerPlan:
    plan = ContainerPlan(
        argv=("sh", "-c", "echo hello"),
        env=("PATH=/usr/bin:/bin", "HOME=/"),
        workdir="/",
        hostname="sample",
        uid=65532,
        gid=65532,
        groups=(),
        user_asked="",
        user_mapped=True,
        read_only=True,
        capabilities=(),
        no_new_privileges=True,
        limits=Limits(memory=64 << 20, cpus=0.5, pids=32, files=256),
        tmpfs=(Tmpfs("/tmp", 16 << 20, 0o1777, executable=False),),
        terminal=False,
        interactive=False,
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def image_of(layout: Path, tars: list[bytes], *, level: int = 9) -> Image:
    """An image whose layers are ``tars``, gzipped, with their blobs below ``layout``."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def store(data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        (blobs / digest.hex).write_bytes(data)
        return Descriptor(media_type, digest, len(data))

    layers = tuple(
        Layer(
            store(
                gzip.compress(data, level, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip"
            ),
            Compression.GZIP,
            Digest.of(data),
        )
        for data in tars
    )
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
    }
    config_blob = store(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = store(b"manifest", "application/vnd.oci.image.manifest.v1+json")
    return Image(
        reference=Reference(Transport.OCI, str(layout)),
        digest=manifest.digest,
        manifest=manifest,
        config_blob=config_blob,
        config=ImageConfig("amd64", "linux"),
        layers=layers,
        tree=FileTree({}),
        layout=layout,
    )


def plan_of(image: Image, container: ContainerPlan) -> Plan:
    memory = MemoryPlan(64 << 20, 16 << 20, 96 << 20, 176 << 20, 368 << 20)
    return Plan(
        run_id=RUN_ID,
        workload=Workload(image=image.reference),
        image=image,
        base=Base(
            digest=Digest.of(b"base"),
            flavour=Flavour.MINIMAL,
            architecture="amd64",
            kernel_release="6.12",
            contract="vmrun/1",
            recipe=Digest.of(b"recipe"),
            verity=Verity("00" * 32, "00" * 32, 1, 1),
            files={},
            packages={},
            directory=Path("/nonexistent"),
        ),
        host=HostFacts(Accelerator.TCG, "", 2, 1 << 30, False, False, "embedded"),
        guest=GuestPlan(
            name="sample",
            uuid="00000000-0000-4000-8000-000000000000",
            vcpus=1,
            memory=memory,
            accelerator=Accelerator.TCG,
            cpu_model="max",
            kernel_arguments=(),
            ssh_ports=2,
            lease=60,
            boot_deadline=60.0,
            qemu_uid=None,
            qemu_gid=None,
            limit_host_memory=False,
        ),
        container=container,
        warnings=(),
    )
