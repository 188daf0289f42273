"""Which scope decides: as containers/image looks it up, and no way around it by spelling."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.image.reference import parse_reference
from vmrun.model.errors import SettingsError, VmrunError
from vmrun.model.image import Reference, Transport
from vmrun.policy.scopes import bad_scope, covers, scopes
from vmrun.policy.signature_policy import parse_policy

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            "a.example.com/team/app:1",
            ["a.example.com/team/app:1", "a.example.com/team/app", "a.example.com/team",
             "a.example.com", "*.example.com", "*.com", ""],
        ),
        (
            f"a.example.com/app@{DIGEST}",
            [f"a.example.com/app@{DIGEST}", "a.example.com/app", "a.example.com", "*.example.com",
             "*.com", ""],
        ),
        # A wildcard has no port, so it is about every port.
        (
            "a.example.com:5000/app:1",
            ["a.example.com:5000/app:1", "a.example.com:5000/app", "a.example.com:5000",
             "*.example.com", "*.com", ""],
        ),
        ("localhost/app:1", ["localhost/app:1", "localhost/app", "localhost", ""]),
        ("localhost:5000/app", ["localhost:5000/app:latest", "localhost:5000/app",
                                "localhost:5000", ""]),
        ("[::1]:5000/app:1", ["[::1]:5000/app:1", "[::1]:5000/app", "[::1]:5000", ""]),
        # Names have one spelling.
        ("A.Example.COM/app:1", ["a.example.com/app:1", "a.example.com/app", "a.example.com",
                                 "*.example.com", "*.com", ""]),
        (
            "docker.io/busybox:1",
            ["docker.io/library/busybox:1", "docker.io/library/busybox", "docker.io/library",
             "docker.io", "*.io", ""],
        ),
        (
            "index.docker.io/busybox:1",
            ["docker.io/library/busybox:1", "docker.io/library/busybox", "docker.io/library",
             "docker.io", "*.io", ""],
        ),
        ("oci:/srv/images/app:1", ["/srv/images/app", "/srv/images", "/srv", ""]),
        ("oci:/srv/./images/../app", ["/srv/app", "/srv", ""]),
        ("oci:/", [""]),
        ("oci-archive:/srv/app.tar:1", ["/srv/app.tar", "/srv", ""]),
        ("docker-archive:/srv/app.tar", [""]),
        (
            "docker-daemon:app:1",
            ["docker.io/library/app:1", "docker.io/library/app", "docker.io/library", "docker.io",
             "*.io", ""],
        ),
        (
            "docker-daemon:team/app",
            ["docker.io/team/app:latest", "docker.io/team/app", "docker.io/team", "docker.io",
             "*.io", ""],
        ),
        (
            "docker-daemon:a.b:5000/app:1",
            ["a.b:5000/app:1", "a.b:5000/app", "a.b:5000", "*.b", ""],
        ),
        ("docker-daemon:localhost:5000/app",
         ["localhost:5000/app:latest", "localhost:5000/app", "localhost:5000", ""]),
        ("docker-daemon:A.B/app:1", ["a.b/app:1", "a.b/app", "a.b", "*.b", ""]),
        (f"docker-daemon:{DIGEST}", [""]),
    ],
)  # fmt: skip
def test_scopes_from_the_most_specific_to_the_default(image: str, expected: list[str]) -> None:
    assert list(scopes(parse_reference(image))) == expected


@given(st.text(alphabet="/.a", max_size=12))
def test_every_path_has_an_end(path: str) -> None:
    assert scopes(Reference(Transport.OCI, path))[-1] == ""


REJECT, ANYTHING = [{"type": "reject"}], [{"type": "insecureAcceptAnything"}]


def scope_of(image: str, transport: str, *written: str) -> str:
    document = {"default": REJECT, "transports": {transport: dict.fromkeys(written, ANYTHING)}}
    policy = parse_policy(json.dumps(document).encode(), "policy.json")
    return policy.requirements(parse_reference(image))[0]


@pytest.mark.parametrize(
    ("image", "transport", "written", "decides"),
    [
        ("a.example.com/b/c:1", "docker", ["", "a.example.com", "a.example.com/b"],
         "docker: a.example.com/b"),
        ("a.example.com/b/c:1", "docker", ["*.com", "*.example.com"], "docker: *.example.com"),
        ("a.example.com/b/c:1", "docker", ["", "*.example.com"], "docker: *.example.com"),
        ("a.example.com/b/c:1", "docker", [""], "docker: (all)"),
        ("a.example.com/b/c:1", "docker", ["a.example.com/b/c:2"], "default"),
        ("a.example.com/bc:1", "docker", ["a.example.com/b"], "default"),
        ("example.com/b:1", "docker", ["*.example.com"], "default"),
        ("badexample.com/b:1", "docker", ["*.example.com", "example.com"], "default"),
        ("a.example.com:5000/b:1", "docker", ["a.example.com"], "default"),
        ("a.example.com/b:1", "docker", ["a.example.com:5000"], "default"),
        ("a.example.com/b:1", "docker-daemon", ["a.example.com"], "default"),
        ("oci:/srv/images", "oci", ["/srv", "/srv/images"], "oci: /srv/images"),
        ("oci:/srv/images2", "oci", ["/srv/images"], "default"),
        ("oci-archive:/srv/a.tar", "oci", ["/srv"], "default"),
        ("docker-archive:/srv/a.tar", "docker-archive", [""], "docker-archive: (all)"),
    ],
)  # fmt: skip
def test_the_most_specific_scope_decides(
    image: str, transport: str, written: list[str], decides: str
) -> None:
    assert scope_of(image, transport, *written) == decides


@pytest.mark.parametrize(
    ("transport", "scope"),
    [
        *(("docker", scope) for scope in (
            "a.example.com", "a.example.com:5000", "localhost", "a.example.com/b",
            "a.example.com/b/c:1.0", f"a.example.com/b@{DIGEST}", "*.example.com", "*.com",
            "[::1]:5000", "docker.io/library", "docker.io/team", "",
        )),
        ("docker-daemon", "docker.io/library/app:1"),
        ("oci", "/srv"), ("oci", "/srv/a b"), ("oci-archive", "/srv/a.tar"), ("oci", ""),
        ("docker-archive", ""),
    ],
)  # fmt: skip
def test_scopes_that_can_be_found_are_accepted(transport: str, scope: str) -> None:
    assert bad_scope(transport, scope) is None


@pytest.mark.parametrize(
    ("transport", "scope"),
    [
        *(("docker", scope) for scope in (
            "busybox", "library/busybox", "example", "A.example.com", "a.example.com/",
            "https://a.example.com", "a.example.com//b", "a.example.com/B", "*", "*.",
            "a*.example.com", "*.*.com", "*.example.com/b", "*.example.com:5000", "/srv",
            "index.docker.io", "index.docker.io/library/busybox", " a.example.com",
            "a.example.com\n", "a.example.com/b:", "a.example.com/b:1/c",
            f"a.example.com/b:1@{DIGEST}",
        )),
        ("docker-daemon", DIGEST), ("docker-daemon", "app"),
        *((transport, scope) for transport in ("oci", "oci-archive") for scope in (
            "/", "//", "//srv", "srv", "./srv", "/srv/", "/srv/../x", "/srv/./x", "/srv//x", ".",
        )),
        ("docker-archive", "/srv/app.tar"), ("docker-archive", "a.example.com"),
    ],
)  # fmt: skip
def test_scopes_that_can_never_be_found_are_errors(transport: str, scope: str) -> None:
    document = {"default": ANYTHING, "transports": {transport: {scope: REJECT}}}
    with pytest.raises(SettingsError):
        parse_policy(json.dumps(document).encode(), "policy.json")


@given(st.from_regex(r"[a-c]\.[a-c]{1,2}(:[1-9])?(/[a-c]{1,2}){1,3}(:[a-c])?", fullmatch=True))
def test_every_scope_of_an_image_can_be_written_down(image: str) -> None:
    try:
        reference = parse_reference(image)
    except VmrunError:
        return
    assert [s for s in scopes(reference) if bad_scope("docker", s)] == []


@pytest.mark.parametrize(
    ("scope", "name", "held"),
    [
        ("", "a.example.com/b:1", True),
        ("a.example.com", "a.example.com/b:1", True),
        ("a.example.com", "a.example.com:5000/b:1", False),
        ("a.example.com/b", "a.example.com/b:1", True),
        ("a.example.com/b", f"a.example.com/b@{DIGEST}", True),
        ("a.example.com/b", "a.example.com/b/c:1", True),
        ("a.example.com/b", "a.example.com/bc:1", False),
        ("a.example.com/b:1", "a.example.com/b:1", True),
        ("a.example.com/b:1", "a.example.com/b:10", False),
        ("*.example.com", "a.example.com:5000/b:1", True),
        ("*.example.com", "example.com/b:1", False),
        ("*.example.com", "a.badexample.com/b:1", False),
    ],
)
def test_what_a_rule_about_a_scope_covers(scope: str, name: str, held: bool) -> None:
    assert covers(scope, name) is held
