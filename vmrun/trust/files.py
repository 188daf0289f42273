"""Reading the files that decide whom to trust: policies, rules and public keys.

What others than their owner may write decides nothing here: such a file is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, SettingsError
from vmrun.model.trust import TrustFiles
from vmrun.policy.signature_policy import (
    BUILT_IN,
    LARGEST_POLICY,
    KeySource,
    SignaturePolicy,
    parse_policy,
)
from vmrun.policy.trust_rules import LARGEST_RULES, TrustRules, parse_rules
from vmrun.trust.keys import PublicKey

_LARGEST_KEY = 64 * 1024
BUILT_IN_NAME = "built in"


@dataclass(frozen=True, slots=True)
class TrustLayer:
    """One policy (None: it says nothing about signatures) and the rules beside it.

    ``files`` are what they were read from, with digests: a report says under which policy an
    image ran.
    """

    policy: SignaturePolicy | None
    rules: TrustRules
    files: tuple[tuple[str, Digest], ...]

    @property
    def name(self) -> str:
        """The policy's file, for messages."""
        return self.files[0][0] if self.files else BUILT_IN_NAME


def load_layers(pairs: Sequence[TrustFiles]) -> tuple[TrustLayer, ...]:
    """All that applies, the site's first; an image must satisfy every one. Where nobody has
    written a policy the built-in one holds, which rejects everything.

    Raises :class:`SettingsError` for a file that is malformed, missing although it was named, or
    open to others.
    """
    layers = [layer for pair in pairs if (layer := _layer(pair)) is not None]
    if not any(layer.policy for layer in layers):
        layers.append(TrustLayer(BUILT_IN, TrustRules(), ((BUILT_IN_NAME, Digest.of(b"")),)))
    return tuple(layers)


def load_key(source: KeySource) -> PublicKey:
    """The key that a policy names. Raises :class:`SettingsError` or :class:`TrustError`."""
    if source.data:
        return PublicKey.load(source.data, source.where)
    return load_key_file(Path(source.path))


def load_key_file(path: Path) -> PublicKey:
    """A public key file."""
    data = read_trusted(path, _LARGEST_KEY, "key file")
    if data is None:
        raise SettingsError(f"key file {str(path)!r} does not exist", hint="check the path")
    return PublicKey.load(data, f"key file {str(path)!r}")


def read_root(path: Path) -> bytes:
    """The root metadata of a catalogue that is trusted at first."""
    data = read_trusted(path, LARGEST_RULES, "root metadata")
    if data is None:
        raise SettingsError(f"root metadata {str(path)!r} does not exist", hint="check the path")
    return data


def read_trusted(path: Path, largest: int, what: str) -> bytes | None:
    """A whole file that only its owner and root can write; None when there is none."""
    try:
        with open_regular(path, what) as file, reading(f"{what} {path}"):
            status = os.fstat(file.fileno())
            data = read_exactly(file, largest + 1)
    except ImageNotFound:
        if not path.is_symlink():
            return None
        raise SettingsError(
            f"{what} {str(path)!r} is a link to a file that does not exist",
            hint="restore the file, or remove the link",
        ) from None
    except ImageError as error:
        raise SettingsError(error.message, hint=error.hint) from None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or status.st_uid not in (0, os.geteuid()):
        raise SettingsError(
            f"{what} {str(path)!r} can be changed by others",
            hint=f"make it yours: chown {os.geteuid()} FILE; chmod go-w FILE",
        )
    if len(data) > largest:
        raise SettingsError(f"{what} {str(path)!r} has more than {largest} bytes")
    return data


def _layer(pair: TrustFiles) -> TrustLayer | None:
    policy_data = _read(pair.policy, LARGEST_POLICY, "policy", named=pair.policy_named)
    rules_data = _read(pair.rules, LARGEST_RULES, "trust rules", named=pair.rules_named)
    if policy_data is None and rules_data is None:
        return None
    policy, rules, files = None, TrustRules(), []
    if policy_data is not None:
        policy = parse_policy(policy_data, f"policy {str(pair.policy)!r}")
        files.append((str(pair.policy), Digest.of(policy_data)))
    if rules_data is not None:
        rules = parse_rules(rules_data, f"trust rules {str(pair.rules)!r}")
        files.append((str(pair.rules), Digest.of(rules_data)))
    return TrustLayer(policy, rules, tuple(files))


def _read(path: Path, largest: int, what: str, *, named: bool) -> bytes | None:
    data = read_trusted(path, largest, what)
    if data is None and named:
        raise SettingsError(f"{what} {str(path)!r} does not exist", hint="check the path")
    return data
