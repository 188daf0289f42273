"""Settings: flag, then environment ``VMRUN_*``, then the user's file, then /etc, then default.

A site's floor (``minimum_profile`` in /etc) can be tightened by the user's file, never relaxed.
Unknown keys and values of the wrong type are errors (docs/reference/settings.md).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmrun.model.errors import SettingsError
from vmrun.model.trust import TrustFiles
from vmrun.model.workload import EngineName, ProfileName
from vmrun.policy.profiles import PROFILES
from vmrun.run.directories import StateDirectories

SITE_FILE = Path("/etc/vmrun/config.toml")
SYSTEM_STATE = Path("/var/lib/vmrun")
_POLICY = "policy.json"
_RULES = "trust.toml"

_DEFAULTS = {
    "profile": ProfileName.RESTRICTED.value,
    "minimum_profile": ProfileName.BASELINE.value,
    "engine": EngineName.CRUN.value,
    "memory": "128m",
    "cpus": "1",
    "pids_limit": "128",
    "connect": "embedded",
    "state_dir": "",
    "policy": "",
    "trust_rules": "",
    "advisories": "",
    "cert_dir": "",
    "auth_file": "",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What applies when a flag does not say otherwise; ``floor`` is the least strict profile.

    ``trust_files`` are pairs of a signature policy and trust rules, the site's first; an image
    must satisfy every one that exists. ``advisories`` is a folder of offline OSV databases,
    ``cert_dirs`` hold ``HOST[:PORT]/*.crt``, the first that has the registry counts.
    """

    profile: ProfileName
    floor: ProfileName
    engine: EngineName
    memory: str
    cpus: str
    pids_limit: str
    connect: str
    directories: StateDirectories
    trust_files: tuple[TrustFiles, ...]
    advisories: Path
    cert_dirs: tuple[Path, ...]
    auth_file: Path | None


def load_settings(
    environment: Mapping[str, str] | None = None, *, flags: Mapping[str, str] | None = None
) -> Settings:
    """Read the files and the environment; ``flags`` count before both.

    Raises :class:`SettingsError`.
    """
    env = os.environ if environment is None else environment
    user_file = Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config") / "vmrun" / "config.toml"
    site = _read(SITE_FILE)
    user = _read(user_file)
    variables = {
        key: env[f"VMRUN_{key.upper()}"]
        for key in _DEFAULTS
        if key != "minimum_profile" and f"VMRUN_{key.upper()}" in env
    }
    values = {**_DEFAULTS, **site, **user, **variables, **(flags or {})}
    floor = _profile(site.get("minimum_profile", _DEFAULTS["minimum_profile"]), SITE_FILE)
    wanted = _profile(values["minimum_profile"], user_file)
    if PROFILES[wanted].strictness < PROFILES[floor].strictness:
        raise SettingsError(
            f"{user_file}: minimum_profile {wanted} is below this site's {floor}",
            hint=f"remove it, or set {floor} or stricter",
        )
    directories = _directories(values["state_dir"], env)
    return Settings(
        profile=_profile(values["profile"], "profile"),
        floor=wanted,
        engine=_engine(values["engine"]),
        memory=values["memory"],
        cpus=values["cpus"],
        pids_limit=values["pids_limit"],
        connect=values["connect"],
        directories=directories,
        trust_files=(
            TrustFiles(SITE_FILE.with_name(_POLICY), SITE_FILE.with_name(_RULES)),
            TrustFiles(
                policy=_path(values["policy"]) or user_file.with_name(_POLICY),
                rules=_path(values["trust_rules"]) or user_file.with_name(_RULES),
                policy_named=bool(values["policy"]),
                rules_named=bool(values["trust_rules"]),
            ),
        ),
        advisories=_path(values["advisories"]) or directories.advisories,
        cert_dirs=_cert_dirs(values["cert_dir"], user_file.parent),
        auth_file=_path(values["auth_file"]),
    )


def _path(value: str) -> Path | None:
    return Path(value).absolute() if value else None


def _cert_dirs(named: str, user: Path) -> tuple[Path, ...]:
    """Where docker and podman look for a registry's own CA, after vmrun's own folders."""
    if named:
        return (Path(named).absolute(),)
    places = (user, SITE_FILE.parent, Path("/etc/containers"), Path("/etc/docker"))
    return tuple(place / "certs.d" for place in places)


def _home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or "/")


def _directories(state_dir: str, env: Mapping[str, str]) -> StateDirectories:
    if state_dir:
        root = Path(state_dir).absolute()
    elif os.geteuid() == 0:
        root = SYSTEM_STATE
    else:
        root = Path(env.get("XDG_STATE_HOME") or _home(env) / ".local" / "state") / "vmrun"
    bases = [root / "bases"]
    if root != SYSTEM_STATE:
        bases.append(SYSTEM_STATE / "bases")
    return StateDirectories(guests=root / "guests", cache=root / "cache", bases=tuple(bases))


def _read(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}", hint="correct the file") from error
    for key, value in table.items():
        if key not in _DEFAULTS:
            raise SettingsError(
                f"{path}: unknown key {key!r}", hint=f"known: {', '.join(sorted(_DEFAULTS))}"
            )
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise SettingsError(f"{path}: {key} must be a string or a number", hint="correct it")
        if "\0" in str(value):
            raise SettingsError(f"{path}: {key} holds a NUL character", hint="correct it")
    return {key: str(value) for key, value in table.items()}


def _profile(value: str, where: object) -> ProfileName:
    try:
        return ProfileName(value)
    except ValueError:
        raise SettingsError(
            f"{where}: no profile {value!r}", hint=f"one of: {', '.join(ProfileName)}"
        ) from None


def _engine(value: str) -> EngineName:
    try:
        return EngineName(value)
    except ValueError:
        raise SettingsError(
            f"no engine {value!r}", hint=f"one of: {', '.join(EngineName)}"
        ) from None
