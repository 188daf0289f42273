"""This host's store of scans, one file for each image digest."""

from __future__ import annotations

import json
from pathlib import Path

from vmrun.image.document import parse_object
from vmrun.image.durable import replace_file
from vmrun.image.limits import MIB, ImageLimits
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, StateError
from vmrun.model.scan import Scan
from vmrun.scan.bill import scan_as_json, scan_from_json
from vmrun.scan.private import make_private

_LARGEST = 64 * MIB
_LIMITS = ImageLimits(document=_LARGEST)


def load_scan(directory: Path, digest: Digest) -> Scan | None:
    """The stored scan of an image; None if there is none that can be read: then it is scanned."""
    path = _path(directory, digest)
    try:
        with open_regular(path, "scan") as file, reading(f"scan {path}"):
            data = read_exactly(file, _LARGEST + 1)
        scan = scan_from_json(parse_object(data, f"scan {str(path)!r}", _LIMITS))
    except ImageError:
        return None
    return scan if scan.digest == digest else None


def save_scan(directory: Path, scan: Scan) -> None:
    """Store a scan in place of the image's last one."""
    try:
        make_private(directory)
        replace_file(_path(directory, scan.digest), json.dumps(scan_as_json(scan)).encode())
    except OSError as error:
        raise StateError(
            f"cannot write {directory}: {error.strerror or error}",
            hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
        ) from error


def _path(directory: Path, digest: Digest) -> Path:
    return directory / f"{digest.algorithm}-{digest.hex}.json"
