"""Is a signature good for the name that was asked for? Every kind against every relation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.image.reference import parse_reference
from vmrun.model.digest import Digest
from vmrun.policy.identity import (
    DockerName,
    ExactReference,
    ExactRepository,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    RemapIdentity,
    SignedIdentity,
)

DIGEST = str(Digest.of(b"image"))
OTHER = str(Digest.of(b"another image"))
TAG = "a.example.com/app:1"
BY_DIGEST = f"a.example.com/app@{DIGEST}"
LAYOUT = "oci:/srv/app"

EXACT, DEFAULT, REPOSITORY = MatchExact(), MatchRepoDigestOrExact(), MatchRepository()
REFERENCE = ExactReference(DockerName("a.example.com/app", "1"))
ONE_REPOSITORY = ExactRepository("a.example.com/app")
MIRROR = RemapIdentity("mirror.example.com/copies", "a.example.com")
MIRRORED = "mirror.example.com/copies/app:1"


@pytest.mark.parametrize(
    ("identity", "image", "signed", "accepted"),
    [
        (EXACT, TAG, "a.example.com/app:1", True),
        (EXACT, TAG, "a.example.com/app:2", False),
        (EXACT, TAG, "a.example.com/other:1", False),
        (EXACT, TAG, "b.example.com/app:1", False),
        (EXACT, TAG, "a.example.com/app", False),
        (EXACT, TAG, f"a.example.com/app:1@{DIGEST}", False),
        (EXACT, BY_DIGEST, "a.example.com/app:1", False),
        (EXACT, BY_DIGEST, BY_DIGEST, True),
        (EXACT, BY_DIGEST, f"a.example.com/app@{OTHER}", False),
        (EXACT, LAYOUT, TAG, False),
        (DEFAULT, TAG, "a.example.com/app:1", True),
        (DEFAULT, TAG, "a.example.com/app:2", False),
        (DEFAULT, TAG, "a.example.com/other:1", False),
        (DEFAULT, TAG, "a.example.com/app", False),
        (DEFAULT, BY_DIGEST, "a.example.com/app:1", True),
        (DEFAULT, BY_DIGEST, "a.example.com/app:2", True),
        (DEFAULT, BY_DIGEST, "a.example.com/other:1", False),
        # What cosign writes unless it is told otherwise: no tag, so it says too little.
        (DEFAULT, BY_DIGEST, "a.example.com/app", False),
        (DEFAULT, f"a.example.com/app:1@{DIGEST}", "a.example.com/app:1", True),
        (DEFAULT, f"a.example.com/app:1@{DIGEST}", "a.example.com/app:2", False),
        (DEFAULT, LAYOUT, TAG, False),
        (REPOSITORY, TAG, "a.example.com/app:2", True),
        (REPOSITORY, TAG, "a.example.com/app", True),
        (REPOSITORY, BY_DIGEST, "a.example.com/app:2", True),
        (REPOSITORY, TAG, "a.example.com/app/more:1", False),
        (REPOSITORY, TAG, "a.example.com/ap:1", False),
        (REPOSITORY, TAG, "a.example.com:5000/app:1", False),
        (REPOSITORY, LAYOUT, TAG, False),
        (REFERENCE, "b.example.com/x:9", TAG, True),
        (REFERENCE, LAYOUT, TAG, True),
        (REFERENCE, TAG, "a.example.com/app:2", False),
        (REFERENCE, TAG, "a.example.com/app", False),
        (ONE_REPOSITORY, LAYOUT, "a.example.com/app:7", True),
        (ONE_REPOSITORY, LAYOUT, "a.example.com/app", True),
        (ONE_REPOSITORY, "a.example.com/other:1", "a.example.com/other:1", False),
        (MIRROR, MIRRORED, "a.example.com/app:1", True),
        (MIRROR, MIRRORED, "a.example.com/app:2", False),
        (MIRROR, MIRRORED, MIRRORED, False),
        (MIRROR, f"mirror.example.com/copies/app@{DIGEST}", "a.example.com/app:2", True),
        (MIRROR, f"mirror.example.com/copies/app@{DIGEST}", "a.example.com/app", False),
        (MIRROR, "mirror.example.com/copies2/app:1", "a.example.com/app:1", False),
        (MIRROR, "mirror.example.com/copies2/app:1", "mirror.example.com/copies2/app:1", True),
        (MIRROR, TAG, TAG, True),
        (MIRROR, LAYOUT, TAG, False),
        # The whole name is replaced by a host: what is left is no repository.
        (
            RemapIdentity("mirror.example.com/app", "a.example.com"),
            "mirror.example.com/app:1",
            "a.example.com/app:1",
            False,
        ),
        (
            RemapIdentity("mirror.example.com:5000", "a.example.com"),
            "mirror.example.com/app:1",
            "a.example.com/app:1",
            False,
        ),
    ],
)
def test_identities(identity: SignedIdentity, image: str, signed: str, accepted: bool) -> None:
    name = DockerName.parse(signed)
    assert name is not None
    assert identity.accepts(DockerName.of(parse_reference(image)), name) is accepted


@pytest.mark.parametrize(
    "text",
    ["", "app", "app:1", "library/app:1", ":1", "/app:1", "a.example.com", "a.example.com/",
     "a.example.com/App:1", "a.example.com/app:1\n", " a.example.com/app:1", "a.example.com//app:1",
     "a.example.com/app:", "a.example.com/app@sha256:abc", "a.example.com/app:1:2",
     "a.example.com/" + "a" * 600, "https://a.example.com/app:1", "a.example.com/app:1\0",
     "а.example.com/app:1"],
)  # fmt: skip
def test_what_is_no_full_name_matches_nothing(text: str) -> None:
    assert DockerName.parse(text) is None


def test_dockers_own_registry_has_one_name() -> None:
    name = DockerName("docker.io/library/busybox", "1")
    for text in ("docker.io/busybox:1", "index.docker.io/library/busybox:1", str(name)):
        assert DockerName.parse(text) == name


_NAMES = st.from_regex(r"[ab]\.c/[ab](/[ab])?(:[12])?", fullmatch=True)


@given(_NAMES, _NAMES)
def test_laxer_kinds_accept_what_stricter_ones_do(image: str, signed: str) -> None:
    asked, said = DockerName.of(parse_reference(image)), DockerName.parse(signed)
    assert asked is not None
    assert said is not None
    if EXACT.accepts(asked, said):
        assert DEFAULT.accepts(asked, said)
    if DEFAULT.accepts(asked, said):
        assert REPOSITORY.accepts(asked, said)
        assert asked.name == said.name
