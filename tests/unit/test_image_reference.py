"""References: the grammar of containers-transports(5), and what is said about the rest."""

from __future__ import annotations

import pytest

from vmrun.image.reference import parse_reference
from vmrun.model.digest import Digest
from vmrun.model.errors import UsageError
from vmrun.model.image import Reference, Transport

ID = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:/images/demo", Reference(Transport.OCI, "/images/demo")),
        ("oci:demo:v1.0", Reference(Transport.OCI, "demo", "v1.0")),
        ("oci:d:host.example/a/b:latest", Reference(Transport.OCI, "d", "host.example/a/b:latest")),
        ("oci-archive:a b.tar:x", Reference(Transport.OCI_ARCHIVE, "a b.tar", "x")),
        ("docker-archive:a.tar", Reference(Transport.DOCKER_ARCHIVE, "a.tar")),
        ("docker-archive:a.tar:demo:1", Reference(Transport.DOCKER_ARCHIVE, "a.tar", "demo:1")),
        ("docker-archive:a.tar:h:5000/d", Reference(Transport.DOCKER_ARCHIVE, "a.tar", "h:5000/d")),
        ("docker-daemon:demo:1", Reference(Transport.DOCKER_DAEMON, "demo:1")),
        (f"docker-daemon:{ID}", Reference(Transport.DOCKER_DAEMON, ID)),
        ("r.example.com/app:1", Reference(Transport.DOCKER, "r.example.com/app", "1")),
        ("localhost/a/b:x", Reference(Transport.DOCKER, "localhost/a/b", "x")),
        ("127.0.0.1:5000/app:1", Reference(Transport.DOCKER, "127.0.0.1:5000/app", "1")),
        ("[::1]:5000/app:1", Reference(Transport.DOCKER, "[::1]:5000/app", "1")),
        (
            f"r.example.com/app@{ID}",
            Reference(Transport.DOCKER, "r.example.com/app", None, Digest.parse(ID)),
        ),
        (
            f"r.example.com/app:1@{ID}",
            Reference(Transport.DOCKER, "r.example.com/app", "1", Digest.parse(ID)),
        ),
    ],
)
def test_reads_every_transport(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("docker://r.example.com/app:1", "r.example.com/app:1"),
        ("r.example.com/app", "r.example.com/app:latest"),
        ("R.Example.com/app:1", "r.example.com/app:1"),
        ("docker.io/alpine:3", "docker.io/library/alpine:3"),
    ],
)
def test_says_what_a_shorter_form_means(text: str, meant: str) -> None:
    assert str(parse_reference(text)) == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpine", "names no registry"),
        ("alpine:3.20", "names no registry"),
        ("library/alpine", "names no registry"),
        ("", "not an image reference"),
        ("docker://alpine", "names no registry"),
        ("dir:/images", "transport 'dir' is not supported"),
        ("OCI:/images", "not an image reference"),
        ("r.example.com/App", "not an image reference"),
        ("r.example.com/a/../b", "not an image reference"),
        ("http://r.example.com/a", "transport 'http' is not supported"),
        ("r.example.com/app@sha256:abc", "not a digest"),
        ("user@r.example.com/app", "names no registry"),
        ("r.example.com/" + "a" * 255, "more than 255 characters"),
        ("oci:", "the path is empty"),
        ("oci-archive::tag", "the path is empty"),
        ("oci:dir:", "'' cannot name an image"),
        ("oci:dir:-x", "'-x' cannot name an image"),
        ("oci:dir:@0", "'@0' cannot name an image"),
        ("docker-archive:a.tar:Demo", "'Demo' cannot name an image"),
        ("docker-daemon:", "'' cannot name an image"),
        ("docker-daemon:a/../b", "cannot name an image"),
        ("docker-daemon:demo?x=y", "cannot name an image"),
        ("docker-daemon:sha256:abc", "64 lower-case hex digits"),
        ("oci:a\nb", "control characters"),
        ("oci:a\0b", "control characters"),
        ("oci:" + "a" * 5000, "too long"),
    ],
)
def test_refuses_the_rest_with_a_hint(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_reference(text)
    assert any(form in caught.value.hint for form in ("oci", "docker-", "HOST"))
    assert len(caught.value.message) < 500
