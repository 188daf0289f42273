"""Package lists of Debian's security suite, fetched by the host's apt into a folder of its own.

apt is the transport and checks what it gets: the signature, by Debian's own keys, and the date.
What the host's apt.conf relaxes of that, or hooks into it, does not apply here.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from vmrun.model.errors import ScanError

_MIRROR = "http://security.debian.org/debian-security"
"""Debian's own; what the host's apt is told about it (a proxy, a mirror) applies."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT = 120.0
_ARCHITECTURE = "amd64"
_LINE = re.compile(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(https?://\S+)\s+\S+-security(?:/\S*)?\s", re.M)
_REFRESH = 24 * 3600.0
_RETRY = 600.0
"""Seconds after which lists are fetched again, and after which that is tried again."""
_CONFIG = """
// The host's hooks are meant for the host's packages.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
"""
_FETCHED, _TRIED = "fetched", "tried"


def fetch_lists(root: Path, codename: str, sources: Path, *, max_age: float) -> None:
    """Have the lists of ``codename``-security in ``root``/lists, fetched at most ``max_age``
    seconds and a day ago; older ones are left there where apt cannot reach the archive now.

    Raises :class:`ScanError` when there are none, :class:`OSError` when they cannot be kept.
    """
    if not _since(root / _FETCHED, min(max_age, _REFRESH)):
        _fetch(root, codename, sources)


def _since(mark: Path, seconds: float) -> bool:
    """Whether something was done less than ``seconds`` ago; a mark of the future says nothing."""
    try:
        return 0 <= time.time() - mark.stat().st_mtime < seconds
    except FileNotFoundError:
        return False


def _have_lists(root: Path) -> bool:
    return any((root / "lists").glob("*Release"))


def _fetch(root: Path, codename: str, sources: Path) -> None:
    if _have_lists(root) and _since(root / _TRIED, _RETRY):
        return
    if not _KEYRING.exists():
        raise ScanError(
            f"{_KEYRING} is missing, so Debian's index cannot be verified",
            hint="install debian-archive-keyring",
        )
    for name in ("lists/partial", "archives/partial", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mirror = _mirror(sources)
    (root / "etc" / "sources.list").write_text(
        f"deb [arch={_ARCHITECTURE} signed-by={_KEYRING}] {mirror} {codename}-security main\n"
    )
    (root / "etc" / "apt.conf").write_text(_CONFIG)
    (root / "status").touch()
    (root / _TRIED).touch()
    options = {
        "APT::Architecture": _ARCHITECTURE,
        "Dir::State::lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root,
        "Dir::Cache::archives": root / "archives",
        "Dir::Etc::sourcelist": root / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Acquire::Languages": "none",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
        # Without the first the second says nothing.
        "Acquire::Check-Date": "true",
        "Acquire::Check-Valid-Until": "true",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    try:
        done = subprocess.run(
            ["apt-get", "-c", str(root / "etc" / "apt.conf"), *words, "--error-on=any", "-q",
             "update"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        said = [f"status {done.returncode}", *_lines(done.stderr)] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    if not said:
        (root / _FETCHED).touch()
    elif not _have_lists(root):
        raise ScanError(
            f"apt cannot get the index of {codename}-security: {said[-1][:300]}",
            hint="check the network, or scan without it: --no-debian-suite",
        )


def _lines(said: str) -> list[str]:
    return [
        "".join(c if c.isprintable() else " " for c in line) for line in said.split("\n") if line
    ]


def _mirror(sources: Path) -> str:
    """The security archive that the host itself uses, if it is a Debian that names one: those of
    other distributions have suites of the same form."""
    if not re.search(r"^ID=[\"']?debian[\"']?$", _text(sources.parent / "os-release"), re.M):
        return _MIRROR
    for path in (sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))):
        text = _text(path)
        if path.suffix == ".list" and (match := _LINE.search(text + "\n")):
            return match[1]
        for stanza in text.split("\n\n") if path.suffix == ".sources" else ():
            fields = dict(re.findall(r"^(\w[\w-]*):[ \t]*(.+)$", stanza, re.M))
            if fields.get("Enabled", "yes").strip().lower() in ("no", "false", "off", "0"):
                continue
            if "deb" in fields.get("Types", "").split() and "-security" in fields.get("Suites", ""):
                for uri in fields.get("URIs", "").split():
                    if uri.startswith(("http://", "https://")):
                        return str(uri)
    return _MIRROR


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
