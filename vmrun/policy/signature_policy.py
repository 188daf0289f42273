"""containers-policy.json(5): which requirements an image must meet, by where it comes from.

The grammar is read as strictly as containers/image reads it, and what vmrun cannot enforce is an
error when the file is loaded: a requirement that is skipped is a hole that nobody sees.
"""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.model.errors import ImageError, SettingsError
from vmrun.model.image import Reference, Transport
from vmrun.policy.identity import (
    DockerName,
    ExactReference,
    ExactRepository,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    RemapIdentity,
    SignedIdentity,
    is_prefix_form,
)
from vmrun.policy.scopes import bad_scope, scopes

LARGEST_POLICY = 4 * MIB
_LIMITS = ImageLimits(document=LARGEST_POLICY)
_MOST = 256
_UNSUPPORTED = (
    "fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData",
    "rekorPublicKeyDatas",
)  # fmt: skip
_KEYS = ("keyPath", "keyPaths", "keyData", "keyDatas")
_FOREIGN = frozenset({"atomic", "containers-storage", "dir", "ostree", "sif", "tarball"})
"""Transports that other readers of the same file have; a name that nobody knows is misspelt."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """A public key: a file by its absolute path, or PEM text in the policy itself."""

    path: str = ""
    data: bytes = b""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """No image is accepted."""

    def __str__(self) -> str:
        return "reject"


@dataclass(frozen=True, slots=True)
class AcceptAnything:
    """Every image is accepted, signed or not."""

    def __str__(self) -> str:
        return "insecureAcceptAnything"


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature by any of ``keys`` whose name fits by ``identity``."""

    keys: tuple[KeySource, ...]
    identity: SignedIdentity

    def __str__(self) -> str:
        keys = f"{len(self.keys)} keys, any of them" if len(self.keys) > 1 else "1 key"
        return f"sigstoreSigned ({keys}) for {self.identity}"


Requirement = Reject | AcceptAnything | Signed


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    """``default`` holds where no transport and scope fits. All of a list must be met."""

    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]]

    def requirements(self, reference: Reference) -> tuple[str, tuple[Requirement, ...]]:
        """The scope that decides about ``reference``, and what it requires."""
        mine = self.transports.get(reference.transport, {})
        for scope in scopes(reference):
            if scope in mine:
                return _words(reference.transport, scope), mine[scope]
        return "default", self.default

    def everything(self) -> tuple[tuple[str, tuple[Requirement, ...]], ...]:
        """Every scope and what it requires, the default first."""
        scoped = (
            (_words(transport, scope), requirements)
            for transport, mine in self.transports.items()
            for scope, requirements in mine.items()
        )
        return (("default", self.default), *scoped)


def _words(transport: str, scope: str) -> str:
    return f"{transport}: {scope or '(all)'}"


BUILT_IN = SignaturePolicy((Reject(),), {})
"""Holds where nobody has written a policy."""


def parse_policy(data: bytes, where: str) -> SignaturePolicy:
    """Read a policy. Raises :class:`SettingsError` that names the place in the file."""
    try:
        document = parse_object(data, where, _LIMITS)
        _only(document, ("default", "transports"))
        default = _requirements(document, "default")
        return SignaturePolicy(default, _transports(_object(document, "transports")))
    except ImageError as error:
        raise SettingsError(error.message, hint=_HINT) from None


_HINT = "see containers-policy.json(5), and docs/reference/policy.md for what vmrun supports"


def _transports(
    document: Document,
) -> dict[str, dict[str, tuple[Requirement, ...]]]:
    found: dict[str, dict[str, tuple[Requirement, ...]]] = {}
    for transport in document.names():
        if transport not in _FOREIGN.union(Transport):
            raise _error(document, f"unknown transport {transport[:80]!r}")
        inner = _object(document, transport)
        scoped: dict[str, tuple[Requirement, ...]] = {}
        for scope in inner.names():
            if transport in set(Transport) and (reason := bad_scope(transport, scope)):
                raise _error(inner, f"scope {scope[:200]!r} {reason}")
            scoped[scope] = _requirements(inner, scope)
        found[transport] = scoped
    return found


def _requirements(document: Document, key: str) -> tuple[Requirement, ...]:
    items = document.objects(key, _MOST)
    if not items:
        raise _error(document, f"{key[:200]!r} is an empty list; to refuse everything say reject")
    return tuple(_requirement(item) for item in items)


def _requirement(item: Document) -> Requirement:
    kind = item.text("type", "")
    if kind == "reject":
        _only(item, ("type",))
        return Reject()
    if kind == "insecureAcceptAnything":
        _only(item, ("type",))
        return AcceptAnything()
    if kind == "sigstoreSigned":
        return _signed(item)
    if kind in ("signedBy", "signedBaseLayer"):
        raise _error(item, f"{kind} is not supported; use sigstoreSigned with keys, or reject")
    raise _error(item, f"unknown requirement {kind[:80]!r}")


def _signed(item: Document) -> Signed:
    for name in _UNSUPPORTED:
        if name in item.names():
            raise _error(item, f"{name!r} is not supported: vmrun verifies with keys only")
    _only(item, ("type", "signedIdentity", *_KEYS))
    given = [name for name in _KEYS if name in item.names()]
    if len(given) != 1:
        raise _error(item, f"exactly one of {', '.join(_KEYS)} must be given, not {len(given)}")
    identity: SignedIdentity = MatchRepoDigestOrExact()
    if "signedIdentity" in item.names():
        identity = _identity(item.nested("signedIdentity"))
    return Signed(_keys(item, given[0]), identity)


def _keys(item: Document, name: str) -> tuple[KeySource, ...]:
    many = name.endswith("s")
    texts = item.texts(name) if many else (item.text(name),)
    if not texts or len(texts) > _MOST:
        raise _error(item, f"{name!r} must name 1 to {_MOST} keys")
    if name.startswith("keyPath"):
        for text in texts:
            if not posixpath.isabs(text):
                raise _error(item, f"{name}: {text[:200]!r} is not an absolute path")
        return tuple(KeySource(path=text, where=text) for text in texts)
    return tuple(
        KeySource(data=_data(item, name, text), where=f"{item.where}: {name}[{number}]")
        for number, text in enumerate(texts)
    )


def _data(item: Document, name: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise _error(item, f"{name} is not base64") from None
    if not data:
        raise _error(item, f"{name} is empty")
    return data


def _identity(item: Document) -> SignedIdentity:
    kind = item.text("type", "")
    simple: dict[str, SignedIdentity] = {
        "matchExact": MatchExact(),
        "matchRepoDigestOrExact": MatchRepoDigestOrExact(),
        "matchRepository": MatchRepository(),
    }
    if kind in simple:
        _only(item, ("type",))
        return simple[kind]
    if kind == "exactReference":
        _only(item, ("type", "dockerReference"))
        name = _name(item, "dockerReference")
        if not name.tag and not name.digest:
            raise _error(item, "dockerReference needs a tag or a digest")
        return ExactReference(name)
    if kind == "exactRepository":
        _only(item, ("type", "dockerRepository"))
        name = _name(item, "dockerRepository")
        if name.tag or name.digest:
            raise _error(item, "dockerRepository has neither tag nor digest")
        return ExactRepository(name.name)
    if kind == "remapIdentity":
        _only(item, ("type", "prefix", "signedPrefix"))
        prefix, signed = item.text("prefix", ""), item.text("signedPrefix", "")
        for text in (prefix, signed):
            if not is_prefix_form(text):
                raise _error(item, f"{text[:200]!r} is not HOST or HOST/PATH")
        return RemapIdentity(prefix, signed)
    raise _error(item, f"unknown signedIdentity {kind[:80]!r}")


def _name(item: Document, key: str) -> DockerName:
    name = DockerName.parse(item.text(key, ""))
    if name is None:
        raise _error(item, f"{key} {item.text(key, '')[:200]!r} is not HOST/REPOSITORY")
    return name


def _object(document: Document, key: str) -> Document:
    """A nested object, empty when it is absent; null is neither."""
    if key in document.names() and key not in document:
        raise _error(document, f"{key[:80]!r} is not an object")
    return document.nested(key)


def _only(document: Document, known: tuple[str, ...]) -> None:
    for name in document.names():
        if name not in known:
            raise _error(document, f"unknown key {name[:80]!r}")


def _error(document: Document, what: str) -> SettingsError:
    return SettingsError(f"{document.where}: {what}", hint=_HINT)
