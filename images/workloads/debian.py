"""The ``debian`` image: a Debian with Python as apt resolves it, each package unpacked and recorded
in dpkg's database as dpkg would, no maintainer script run. Beside it, old wheels of Python lie
where pip installs them.

Debian's own requests and urllib3 have the fixes of their advisories, whatever their versions
suggest; those of PyPI are old and have none. A scanner has to tell them apart.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Mapping
from email.parser import HeaderParser
from pathlib import Path

from oci import Entry
from packages import control, files, packages_in

PACKAGES = (
    "?essential", "apt", "bash", "ca-certificates", "curl", "openssl", "python3",
    "python3-requests", "usr-is-merged",
)  # fmt: skip
WHEELS = {
    "jinja2==2.11.2": "f0a4641d3cf955324a89c04f3d94663aa4d638abe8f733ecd3582848e1c37035",
    "requests==2.19.1": "63b52e3c866428a224f97cab011de738c36aec0185aa91cfacd418b5d58911d1",
    "urllib3==1.24.1": "61bf29cada3fc2fbefad4fdf059ea4bd1b4a86d2b6d15e1c7c0b582b9752fe39",
}
_MERGED = re.compile(r"^(?:bin|sbin|lib|lib64)(?=/|$)")
_LEFT_OUT = re.compile(
    r"usr/share/(?:man|info|locale|lintian|bash-completion)/.+|usr/share/doc/[^/]+/(?!copyright$).+"
)
_DATABASE = "var/lib/dpkg"
_APP_USER = b"app:x:1000:1000:app:/home/app:/bin/sh\n"
_APP_GROUP = b"app:x:1000:\n"


def collect(downloads: Path, _scratch: Path) -> Mapping[str, Entry]:
    """The entries of the image, of the packages and wheels in ``downloads``."""
    entries = {path: Entry(target=f"usr/{path}") for path in ("bin", "sbin", "lib", "lib64")}
    status = []
    entries[f"{_DATABASE}/info/format"] = Entry(b"1\n", mode=0o644)
    for package in packages_in(downloads):
        about = control(package)
        status.append(_installed(about["control"]))
        stem = f"{_DATABASE}/info/{_stem(about['control'])}"
        entries[f"{stem}.list"] = Entry(_unpack(files(package), entries), mode=0o644)
        if "md5sums" in about:
            entries[f"{stem}.md5sums"] = Entry(about["md5sums"].encode(), mode=0o644)
    entries[f"{_DATABASE}/status"] = Entry("\n".join(status).encode(), mode=0o644)
    for name, more in (("passwd", _APP_USER), ("group", _APP_GROUP)):
        # As base-passwd's script does.
        master = entries[f"usr/share/base-passwd/{name}.master"].data or b""
        entries[f"etc/{name}"] = Entry(master + more, mode=0o644)
    entries["home/app"] = Entry(owner=1000)
    python = next(path for path in sorted(entries) if re.fullmatch(r"usr/bin/python3\.\d+", path))
    wheels = installed_wheels(downloads, f"usr/local/lib/{Path(python).name}/dist-packages")
    return {**entries, **wheels}


def installed_wheels(downloads: Path, folder: str) -> Mapping[str, Entry]:
    """The files of the wheels in ``downloads`` as pip installs them: wheels of plain Python are
    unpacked."""
    entries = {}
    for wheel in sorted(downloads.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    path = f"{folder}/{member.filename}"
                    entries[path] = Entry(archive.read(member), mode=0o644)
                    if path.endswith(".dist-info/WHEEL"):
                        entries[f"{path[:-5]}INSTALLER"] = Entry(b"pip\n", mode=0o644)
    return entries


def _installed(fields: str) -> str:
    first, _, rest = fields.partition("\n")
    return f"{first}\nStatus: install ok installed\n{rest}"


def _stem(fields: str) -> str:
    """How dpkg names its files about a package."""
    headers = HeaderParser().parsestr(fields)
    same = headers["Multi-Arch"] == "same"
    return f"{headers['Package']}:{headers['Architecture']}" if same else headers["Package"]


def _unpack(tar: bytes, entries: dict[str, Entry]) -> bytes:
    """Add a package's files, and return the list that dpkg keeps of them."""
    listed = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            name = member.name.removeprefix("./").rstrip("/")
            listed.append(f"/{name or '.'}\n")
            path = _MERGED.sub(lambda found: f"usr/{found[0]}", name, count=1)
            if name in ("", "."):
                continue
            if not _LEFT_OUT.fullmatch(path):
                entries[path] = _entry(archive, member)
    return "".join(listed).encode()


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    owner, group, mode = member.uid, member.gid, member.mode & 0o7777
    if member.issym():
        return Entry(target=member.linkname)
    if member.isdir():
        return Entry(mode=mode, owner=owner, group=group)
    content = archive.extractfile(member)  # of a hard link: what it leads to
    if content is None:
        raise ValueError(f"{member.name} is neither a file, a folder nor a link")
    return Entry(content.read(), mode=mode, owner=owner, group=group)
