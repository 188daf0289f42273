"""Does the name in a signature fit the name under which an image was asked for?

The rules are those of containers-policy.json(5), "signedIdentity". A signature is good for a name,
not for a digest alone: otherwise whoever can write to a registry could serve last year's signed
image, or another team's, under any tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmrun.model.image import Reference, Transport

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?"
_NAME = re.compile(
    rf"(?P<name>{_HOST}(?:/{_PART})+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_PREFIX = re.compile(rf"{_HOST}(?:/{_PART})*")
_LONGEST = 512
_HUB = "docker.io"


def full_name(name: str) -> str:
    """A name without tag as docker completes it: a short one is on Docker's own registry, whose
    images of one part are in ``library``."""
    host, slash, rest = name.partition("/")
    if not slash or not (host == "localhost" or any(mark in host for mark in ".:")):
        host, rest = _HUB, name
    if host in (_HUB, f"index.{_HUB}"):
        host, rest = _HUB, rest if "/" in rest else f"library/{rest}"
    return f"{host}/{rest}"


@dataclass(frozen=True, slots=True)
class DockerName:
    """``HOST/REPOSITORY`` with a tag or a digest, or neither."""

    name: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> DockerName | None:
        """Read a full name; None for anything else, short names too."""
        match = _NAME.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None:
            return None
        host = match["name"].partition("/")[0]
        if host != "localhost" and not any(mark in host for mark in ".:"):
            return None
        return cls(full_name(match["name"]), match["tag"] or "", match["digest"] or "")

    @classmethod
    def of(cls, reference: Reference) -> DockerName | None:
        """The name of a registry reference; other transports have none. One with tag and digest
        goes by its tag: the digest is compared by whoever fetches it."""
        if reference.transport is not Transport.DOCKER:
            return None
        name = full_name(reference.path)
        if reference.tag:
            return cls(name, tag=reference.tag)
        return cls(name, digest=str(reference.digest) if reference.digest else "")

    @property
    def exact(self) -> bool:
        """Whether it has a tag or a digest."""
        return bool(self.tag or self.digest)

    def __str__(self) -> str:
        return (
            self.name
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )


def is_prefix_form(text: str) -> bool:
    """Whether ``text`` can be a prefix of names: a host, or a host and a path."""
    return len(text) <= _LONGEST and _PREFIX.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class MatchExact:
    """The very same name and tag (or digest)."""

    def __str__(self) -> str:
        return "the very same name"

    def accepts(self, image: DockerName | None, signed: DockerName) -> bool:
        """Whether a signature for ``signed`` is good for ``image``."""
        return image is not None and image.exact and image == signed


@dataclass(frozen=True, slots=True)
class MatchRepoDigestOrExact:
    """The same name and tag; for an image by digest the same repository. The default."""

    def __str__(self) -> str:
        return "the name it is asked for by"

    def accepts(self, image: DockerName | None, signed: DockerName) -> bool:
        """Whether a signature for ``signed`` is good for ``image``."""
        if image is None or not image.exact or not signed.exact:
            return False
        return image == signed if image.tag else image.name == signed.name


@dataclass(frozen=True, slots=True)
class MatchRepository:
    """The same repository, whatever the tag."""

    def __str__(self) -> str:
        return "its repository"

    def accepts(self, image: DockerName | None, signed: DockerName) -> bool:
        """Whether a signature for ``signed`` is good for ``image``."""
        return image is not None and image.name == signed.name


@dataclass(frozen=True, slots=True)
class ExactReference:
    """One given name and tag (or digest), however the image was asked for."""

    reference: DockerName

    def __str__(self) -> str:
        return str(self.reference)

    def accepts(self, image: DockerName | None, signed: DockerName) -> bool:
        """Whether a signature for ``signed`` is good for ``image``."""
        return signed == self.reference


@dataclass(frozen=True, slots=True)
class ExactRepository:
    """One given repository, however the image was asked for."""

    repository: str

    def __str__(self) -> str:
        return f"any tag of {self.repository}"

    def accepts(self, image: DockerName | None, signed: DockerName) -> bool:
        """Whether a signature for ``signed`` is good for ``image``."""
        return signed.name == self.repository


@dataclass(frozen=True, slots=True)
class RemapIdentity:
    """For mirrors: a name below ``prefix`` counts as the one below ``signed_prefix``; then as
    :class:`MatchRepoDigestOrExact`."""

    prefix: str
    signed_prefix: str

    def __str__(self) -> str:
        return f"{self.signed_prefix}… in place of {self.prefix}…"

    def accepts(self, image: DockerName | None, signed: DockerName) -> bool:
        """Whether a signature for ``signed`` is good for ``image``."""
        if image is None:
            return False
        name = image.name
        if name == self.prefix or name.startswith(f"{self.prefix}/"):
            name = self.signed_prefix + name.removeprefix(self.prefix)
        return MatchRepoDigestOrExact().accepts(DockerName(name, image.tag, image.digest), signed)


SignedIdentity = (
    MatchExact
    | MatchRepoDigestOrExact
    | MatchRepository
    | ExactReference
    | ExactRepository
    | RemapIdentity
)
