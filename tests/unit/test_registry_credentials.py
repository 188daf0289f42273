"""Credentials from docker's config.json and from its helpers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmrun.image.registry.credentials import Credentials, find_credentials
from vmrun.model.errors import ImageError, ImageNotFound

HUB = "docker" + ".io"
HOST = "registry.example.com"
Helper = Callable[[str, str], None]


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def found(
    path: Path, config: object, host: str = HOST, repository: str = "team/app"
) -> Credentials | None:
    file = path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return find_credentials(host, repository, file, {})


def user(path: Path, auths: Mapping[str, object], **more: str) -> str | None:
    credentials = found(path, {"auths": auths}, **more)
    return credentials.user if credentials else None


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [HOST, f"https://{HOST}", f"http://{HOST}/", f"https://{HOST}/v1/", f"https://{HOST}/v2"]
)
def test_with_and_without_scheme_and_path(key: str, tmp_path: Path) -> None:
    assert found(tmp_path, {"auths": {key: encoded("ann:se:cret")}}) == Credentials(
        "ann", "se:cret"
    )


def test_the_most_specific_name_counts(tmp_path: Path) -> None:
    auths = {
        HOST: encoded("host:x"),
        f"{HOST}/team": encoded("team:x"),
        f"{HOST}/team/app": encoded("app:x"),
        f"{HOST}/te": encoded("prefix:x"),
    }
    assert user(tmp_path, auths) == "app"
    assert user(tmp_path, auths, repository="team/app/deep") == "app"
    assert user(tmp_path, auths, repository="team/apple") == "team"
    assert user(tmp_path, auths, repository="teams/app") == "host"


def test_a_name_below_a_registry_is_not_the_registry(tmp_path: Path) -> None:
    assert user(tmp_path, {f"{HOST}/v2": encoded("v2:x")}) is None
    assert user(tmp_path, {f"{HOST}/v2": encoded("v2:x")}, repository="v2/app") == "v2"


@pytest.mark.parametrize(
    "host", ["registry.example.com:5000", "example.com", "xregistry.example.com", HOST + ".evil"]
)
def test_no_other_host_gets_them(host: str, tmp_path: Path) -> None:
    assert user(tmp_path, {HOST: encoded("ann:x")}, host=host) is None


@pytest.mark.parametrize("key", [HUB, f"https://index.{HUB}/v1/", f"index.{HUB}"])
def test_the_hub(key: str, tmp_path: Path) -> None:
    assert user(tmp_path, {key: encoded("ann:x")}, host=HUB) == "ann"
    assert user(tmp_path, {key: encoded("ann:x")}) is None


def test_other_forms(tmp_path: Path) -> None:
    identity = found(tmp_path, {"auths": {HOST: {**encoded("ann:"), "identitytoken": "t"}}})
    assert identity == Credentials("ann", "", "t")
    plain = found(tmp_path, {"auths": {HOST: {"username": "ann", "password": "x"}}})
    assert plain == Credentials("ann", "x")
    assert found(tmp_path, {"auths": {HOST: {}}}) is None
    assert found(tmp_path, {}) is None
    assert found(tmp_path, {"auths": None, "HttpHeaders": {"a": "b"}, "detachKeys": "x"}) is None


def test_secrets_are_not_printed() -> None:
    assert "hidden" not in repr(Credentials("ann", "hidden", "hidden"))


def test_where_docker_looks(tmp_path: Path) -> None:
    config = json.dumps({"auths": {HOST: encoded("ann:x")}})
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(config)
    assert find_credentials(HOST, "a", None, {"HOME": str(tmp_path)})
    assert not find_credentials(
        HOST, "a", None, {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "none")}
    )
    with pytest.raises(ImageNotFound):
        find_credentials(HOST, "a", tmp_path / "none.json", {"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"auths": []}',
        '{"auths": {"registry.example.com": 1}}',
        '{"auths": {"registry.example.com": {"auth": 1}}}',
        '{"auths": {"registry.example.com": {"auth": "%%%"}}}',
        '{"auths": {"registry.example.com": {"auth": "/w=="}}}',
        '{"auths": {}, "auths": {}}',
        '{"credsStore": 1}',
        '{"credsStore": "../../bin/sh"}',
        '{"credHelpers": {"registry.example.com": ["x"]}}',
    ],
)
def test_malformed_files(text: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        found(tmp_path, text)
    assert "image" not in caught.value.hint, "it is not the image that is to be corrected"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(min_size=1).filter(lambda t: ":" not in t), password=st.text())
def test_users_and_passwords_of_any_letters(name: str, password: str, tmp_path: Path) -> None:
    # docker pads what it encodes with NUL characters
    expected = Credentials(name, password.rstrip("\0"))
    assert found(tmp_path, {"auths": {HOST: encoded(f"{name}:{password}")}}) == expected


# --- helpers -------------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    """Installs a credential helper that is a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def install(name: str, script: str) -> None:
        program = folder / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return install


ANSWER = """read server
[ "$1" = get ] && printf '{"ServerURL":"%s","Username":"ann of %s","Secret":"x"}' $server $server"""


def test_a_helper_is_asked(helper: Helper, tmp_path: Path) -> None:
    helper("vault", ANSWER)
    assert found(tmp_path, {"credsStore": "vault"}) == Credentials(f"ann of {HOST}", "x")


def test_a_helper_of_one_registry_goes_before_the_store(helper: Helper, tmp_path: Path) -> None:
    helper("vault", ANSWER)
    helper("other", "exit 9")
    config = {"credsStore": "other", "credHelpers": {HOST: "vault"}}
    assert found(tmp_path, config) == Credentials(f"ann of {HOST}", "x")


def test_a_helper_knows_the_hub_by_its_address(helper: Helper, tmp_path: Path) -> None:
    helper(
        "vault",
        f"""read server
        [ $server = https://index.{HUB}/v1/ ] || {{ echo credentials not found; exit 1; }}
        printf '{{"Username":"ann","Secret":"x"}}'""",
    )
    assert found(tmp_path, {"credsStore": "vault"}, host=HUB) == Credentials("ann", "x")


def test_an_identity_token_of_a_helper(helper: Helper, tmp_path: Path) -> None:
    helper("vault", """printf '{"Username":"<token>","Secret":"t"}'""")
    assert found(tmp_path, {"credsStore": "vault"}) == Credentials("", "", "t")


def test_what_a_helper_does_not_have_may_be_in_the_file(helper: Helper, tmp_path: Path) -> None:
    helper("vault", "echo credentials not found in native keychain; exit 1")
    config = {"credsStore": "vault", "auths": {HOST: encoded("file:x")}}
    assert found(tmp_path, config) == Credentials("file", "x")


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("exit 3", "failed with status 3"),
        ("echo locked; exit 1", "failed with status 1"),
        ("kill -9 $$", "failed with status -9"),
        ("echo nonsense", "cannot be read"),
        ("echo '{\"Username\": 1}'", "cannot be read"),
        ("yes", "more than 65536 bytes"),
    ],
)
def test_helpers_that_fail(script: str, match: str, helper: Helper, tmp_path: Path) -> None:
    helper("vault", script)
    with pytest.raises(ImageError, match=match):
        found(tmp_path, {"credsStore": "vault", "auths": {HOST: encoded("file:x")}})


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & exit 0", "exec >&-; sleep 60"])
def test_helpers_that_hang(
    script: str, helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrun.image.registry.helper.TIMEOUT", 0.5)
    helper("vault", script)
    began = time.monotonic()
    with pytest.raises(ImageError, match="vault"):
        found(tmp_path, {"credsStore": "vault"})
    assert time.monotonic() - began < 5


def test_a_helper_that_is_missing(helper: Helper, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="docker-credential-vault is not installed"):
        found(tmp_path, {"credsStore": "vault"})
