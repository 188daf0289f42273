"""Image configs: OCI image-spec (config.md) and Docker's, which it grew from."""

from __future__ import annotations

import posixpath

from vmrun.image.document import parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError
from vmrun.model.image import ImageConfig


def parse_config(
    data: bytes, where: str, limits: ImageLimits
) -> tuple[ImageConfig, tuple[Digest, ...]]:
    """Read a config: what to execute, and the diff_ids of the layers, lowest first."""
    document = parse_object(data, where, limits)
    execution = document.nested("config")
    rootfs = document.nested("rootfs")
    if rootfs.text("type", "layers") != "layers":
        raise ImageError(f"{rootfs.where}: unknown type {rootfs.text('type')[:80]!r}")
    config = ImageConfig(
        architecture=document.text("architecture"),
        os=document.text("os"),
        user=execution.text("User", ""),
        env=execution.texts("Env"),
        entrypoint=execution.texts("Entrypoint"),
        cmd=execution.texts("Cmd"),
        working_dir=_absolute(execution.text("WorkingDir", "")),
        labels=execution.text_map("Labels"),
        stop_signal=execution.text("StopSignal", "") or "SIGTERM",
        volumes=execution.nested("Volumes").names(),
    )
    return config, tuple(Digest.parse(text) for text in rootfs.texts("diff_ids"))


def check_platform(config: ImageConfig, where: str, architecture: str) -> None:
    """Refuse an image that this host's guests cannot run."""
    if (config.os, config.architecture) != ("linux", architecture):
        raise wrong_platform(where, architecture, f"{config.os}/{config.architecture}")


def wrong_platform(where: str, wanted: str, found: str) -> ImageError:
    """The error for an image that exists, but for other platforms."""
    return ImageError(
        f"{where}: no image for linux/{wanted}; it has {found[:400]}",
        hint=f"build or save the image for linux/{wanted}",
    )


def _absolute(working_dir: str) -> str:
    """The working directory as container engines read it: relative means below ``/``."""
    return "/" + posixpath.normpath("/" + working_dir).lstrip("/")
