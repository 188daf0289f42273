"""Who gets to see credentials: the registry, its token server, and nobody else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.images import OCI_MANIFEST, TestImage, dumps, file, image, plain_image, sha256
from tests.lying_registry import (
    Answer,
    Identity,
    LyingRegistry,
    certified,
    endless,
    error,
    in_turn,
    lying_registry,
    needs,
    redirect,
    status,
    trusting,
)
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.image.registry.addresses import is_loopback
from vmrun.image.registry.challenge import parse_challenges
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.repository import Repository
from vmrun.model.errors import ImageError, ImageTooLarge

BASIC = "Basic " + base64.b64encode(b"ann:secret").decode()
BEARER = "Bearer good-token"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.image.registry.transport._LONGEST_WAIT", 0.01)
    monkeypatch.setattr("vmrun.image.registry.source._PAUSE", 0.01)


@pytest.fixture
def liar() -> Iterator[LyingRegistry]:
    with lying_registry() as registry:
        yield registry


@pytest.fixture
def other() -> Iterator[LyingRegistry]:
    """Somebody else's server."""
    with lying_registry() as registry:
        yield registry


@pytest.fixture
def held(liar: LyingRegistry) -> TestImage:
    return liar.hold(plain_image())


@pytest.fixture
def options(liar: LyingRegistry, tmp_path: Path) -> RegistryOptions:
    """With ann's password for the registry."""
    return RegistryOptions(plain_http=True, auth_file=logged_in(liar.host, tmp_path))


def logged_in(host: str, path: Path, **more: str) -> Path:
    auth = base64.b64encode(b"ann:secret").decode()
    (path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth, **more}}}))
    return path / "config.json"


def bearer(server: LyingRegistry) -> str:
    return (
        f'Bearer realm="{server.url}/token",service="reg \\"1\\"",scope="repository:team/app:pull"'
    )


def gives(token: str = "good-token", **more: object) -> bytes:
    return dumps({"token": token, **more})


def repository(liar: LyingRegistry, options: RegistryOptions, *, push: bool = False) -> Repository:
    return Repository(parse_reference(liar.reference), options, push=push)


def nobody_saw(server: LyingRegistry) -> None:
    assert server.seen, "the test did not get there"
    for seen in server.seen:
        assert seen.authorization is None
        assert b"secret" not in seen.body


# --- basic ---------------------------------------------------------------------------------


def test_basic_only_when_asked(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", "/v2/", needs(BASIC, 'Basic realm="here"'))
    fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert liar.seen[0].authorization is None
    assert {seen.authorization for seen in liar.seen[1:]} == {BASIC}
    assert len(liar.seen) == 4


def test_without_a_challenge_nothing_is_sent(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    there = repository(liar, options)
    assert there.manifest("1")
    nobody_saw(liar)
    assert there.account == ""


def test_a_wrong_password(liar: LyingRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    liar.lie("GET", "/v2/", needs("Basic other", 'Basic realm="here"'))
    with pytest.raises(ImageError, match=r"refuses user ann \(status 401\)") as caught:
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert f"docker login {liar.host}" in caught.value.hint
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{caught.value.details}"
    assert len(liar.seen) == 2


def test_nobody_knows_us(liar: LyingRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    liar.lie("GET", "/v2/", needs(BASIC, 'Basic realm="here"'))
    with pytest.raises(ImageError, match="refuses us") as caught:
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert f"docker login {liar.host}" in caught.value.hint


# --- bearer tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_the_bearer_flow(
    field: str,
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    liar.lie("GET", "/v2/", needs(BEARER, bearer(other)))
    other.lie("GET", "/token", status(200, dumps({field: "good-token", "expires_in": 300})))
    fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    (asked,) = other.seen  # one token serves all requests
    assert asked.authorization == BASIC
    query = parse_qs(urlsplit(asked.path).query)
    assert query == {"service": ['reg "1"'], "scope": ["repository:team/app:pull"]}
    assert {seen.authorization for seen in liar.seen} == {None, BEARER}


def test_an_anonymous_token(
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text("{}")
    liar.lie("GET", "/v2/", needs(BEARER, bearer(other)))
    other.lie("GET", "/token", status(200, gives()))
    assert repository(liar, options).manifest("1")
    nobody_saw(other)


def test_parallel_downloads_share_one_token(
    liar: LyingRegistry, other: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.hold(image(*([file(str(number))] for number in range(8))))
    # The token that resolved the tag is not good for blobs any more.
    liar.lie("GET", "/manifests/", needs("Bearer first", bearer(other)))
    liar.lie("GET", "/blobs/", needs(BEARER, bearer(other)))
    other.lie("GET", "/token", in_turn(status(200, gives("first")), status(200, gives())))
    fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert len(other.seen) == 2


def test_an_expired_token_is_replaced(
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmrun.image.registry.auth._MARGIN", 1000.0)
    liar.lie("GET", "/v2/", needs(BEARER, bearer(other)))
    other.lie("GET", "/token", status(200, gives(expires_in=60)))
    there = repository(liar, options)
    with pytest.raises(ImageError):  # it had expired before it could be sent
        there.manifest("1")
    monkeypatch.setattr("vmrun.image.registry.auth._MARGIN", 10.0)
    assert there.manifest("1")
    assert len(other.seen) == 2


def test_an_identity_token_is_posted(
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    logged_in(liar.host, tmp_path, identitytoken="long-lived")
    liar.lie("GET", "/v2/", needs(BEARER, bearer(other)))
    other.lie("POST", "/token", status(200, dumps({"access_token": "good-token"})))
    assert repository(liar, options).manifest("1")
    (asked,) = other.seen
    form = parse_qs(asked.body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["long-lived"]
    assert form["scope"] == ["repository:team/app:pull"]
    assert asked.authorization is None
    assert "long-lived" not in asked.path


def test_pushing_asks_for_both_from_the_start(
    liar: LyingRegistry, other: LyingRegistry, held: TestImage, options: RegistryOptions
) -> None:
    liar.lie("GET", "/v2/", needs(BEARER, bearer(other)))
    other.lie("GET", "/token", status(200, gives()))
    repository(liar, options, push=True).manifest("1")
    query = parse_qs(urlsplit(other.seen[0].path).query)
    assert query["scope"] == ["repository:team/app:pull,push", "repository:team/app:pull"]


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        (endless(b" " * 4096), ImageTooLarge, "more than"),
        (status(200, b"{}"), ImageError, "holds no token"),
        (status(200, b'{"token": 5}'), ImageError, "token"),
        (status(200, gives("a b")), ImageError, "holds no token"),
        (status(200, gives("a\r\nX-Evil: 1")), ImageError, "holds no token"),
        (status(200, gives(expires_in=-5)), ImageError, "expires_in"),
        (status(200, b"<html>"), ImageError, "malformed"),
        (status(401, error("UNAUTHORIZED")), ImageError, r"no token \(status 401\)"),
        (status(403), ImageError, r"no token \(status 403\)"),
        (status(404), ImageError, r"no token \(status 404\)"),
        (status(429), ImageError, "429"),
        (status(500), ImageError, "500"),
        (redirect("/elsewhere"), ImageError, r"no token \(status 307\)"),
    ],
)
def test_token_servers_that_lie(
    answer: Answer,
    kind: type[ImageError],
    match: str,
    liar: LyingRegistry,
    other: LyingRegistry,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    liar.lie("GET", "/v2/", needs(BEARER, bearer(other)))
    other.lie("GET", "/token", answer)
    with pytest.raises(ImageError, match=match) as caught:
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert type(caught.value) is kind
    assert caught.value.message.isprintable()
    assert len(other.seen) <= 4


def test_a_registry_that_never_likes_its_tokens(
    liar: LyingRegistry, other: LyingRegistry, options: RegistryOptions
) -> None:
    liar.lie("GET", "/v2/", needs("Bearer never", bearer(other)))
    other.lie("GET", "/token", status(200, gives()))
    with pytest.raises(ImageError, match="status 401"):
        repository(liar, options).manifest("1")
    assert len(other.seen) == 1


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example.com/token",
        "ftp://127.0.0.1/token",
        "http://u:p@127.0.0.1/",
        "https://[::1/",
    ],
)
def test_realms_that_get_nothing(realm: str, liar: LyingRegistry, options: RegistryOptions) -> None:
    liar.lie("GET", "/v2/", needs(BEARER, f'Bearer realm="{realm}"'))
    with pytest.raises(ImageError, match="sends us to"):
        repository(liar, options).manifest("1")


# --- redirects -----------------------------------------------------------------------------


def test_a_store_of_blobs_gets_no_authorization(
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    other.hold(held)
    liar.lie("GET", "/manifests/", needs(BASIC, "Basic realm=x"))
    for data in (held.config, held.layers[0].blob):
        liar.lie("GET", sha256(data), redirect(f"{other.url}/v2/team/app/blobs/{sha256(data)}?s=1"))
    fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert [s.authorization for s in liar.seen] == [None, BASIC, BASIC, BASIC]
    assert len(other.seen) == 2
    nobody_saw(other)


def test_a_store_on_the_registrys_own_host_gets_none_either(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    data = held.layers[0].blob
    liar.lie("GET", "/v2/", needs(BASIC, "Basic realm=x"))
    liar.lie("GET", f"/blobs/{sha256(data)}$", redirect("/store?signed=1"))
    liar.lie("GET", "/store", status(200, data))
    fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    (stored,) = liar.asked("GET", "/store")
    assert stored.authorization is None


@pytest.mark.parametrize("challenge", ["basic", "bearer"])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_who_we_are_redirected_to_may_not_ask_who_we_are(
    challenge: str,
    kind: str,
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    asks = bearer(other) if challenge == "bearer" else 'Basic realm="give"'
    other.lie("GET", "/", status(401, WWW_Authenticate=asks))
    other.lie("GET", "/token", status(200, gives()))
    liar.lie("GET", f"/{kind}/", redirect(f"{other.url}/here?X-Amz-Signature=opens"))
    with pytest.raises(ImageError, match="which answers 401") as caught:
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    nobody_saw(other)
    assert not other.asked("GET", "/token")
    assert "opens" not in caught.value.message


def test_credentials_do_not_come_back_after_a_detour(
    liar: LyingRegistry,
    other: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
) -> None:
    liar.lie("GET", "/manifests/", needs(BASIC, "Basic realm=x"))
    there = repository(liar, options)
    assert there.manifest("1")
    liar.lie("GET", "/manifests/", redirect(f"{other.url}/back"))
    liar.lie("GET", "/secret", status(200, held.manifest, Content_Type=OCI_MANIFEST))
    other.lie("GET", "/back", redirect(f"{liar.url}/secret"))
    assert there.manifest("1")
    (last,) = liar.asked("GET", "/secret")
    assert last.authorization is None
    nobody_saw(other)


def test_a_404_of_somebody_else_does_not_mean_absent(
    liar: LyingRegistry, other: LyingRegistry, options: RegistryOptions
) -> None:
    liar.lie("GET", "/manifests/", redirect(f"{other.url}/nothing"))
    with pytest.raises(ImageError, match="which answers 404"):
        repository(liar, options).manifest("1")


def test_a_redirect_loop(liar: LyingRegistry, options: RegistryOptions) -> None:
    liar.lie("GET", "/manifests/", redirect("/v2/team/app/manifests/1"))
    with pytest.raises(ImageError, match="more than 5 redirects"):
        repository(liar, options).manifest("1")
    assert len(liar.seen) == 6


def test_five_redirects_are_followed(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions
) -> None:
    liar.lie("GET", "/step5$", status(200, held.manifest, Content_Type=OCI_MANIFEST))
    for number in range(1, 5):
        liar.lie("GET", f"/step{number}$", redirect(f"/step{number + 1}"))
    liar.lie("GET", "/manifests/", redirect("/step1"))
    assert repository(liar, options).manifest("1")


@pytest.mark.parametrize("target", ["http://store.example.com/x", "ftp://127.0.0.1/", "file:///x"])
def test_redirects_that_are_not_followed(
    target: str, liar: LyingRegistry, options: RegistryOptions
) -> None:
    liar.lie("GET", "/manifests/", redirect(target))
    with pytest.raises(ImageError, match="sends us to"):
        repository(liar, options).manifest("1")


# --- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return certified(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def secure(identity: Identity) -> Iterator[LyingRegistry]:
    with lying_registry(identity) as registry:
        registry.hold(plain_image())
        yield registry


def over_tls(secure: LyingRegistry, identity: Identity, path: Path) -> RegistryOptions:
    return RegistryOptions(
        cert_dirs=(path / "none", trusting(path, identity, secure.host)),
        auth_file=logged_in(secure.host, path),
    )


def test_https_never_becomes_http(
    secure: LyingRegistry, identity: Identity, other: LyingRegistry, tmp_path: Path
) -> None:
    """Not even to this host, where plain HTTP would do."""
    options = over_tls(secure, identity, tmp_path)
    assert repository(secure, options).manifest("1")
    secure.lie("GET", "/manifests/", redirect(f"{other.url}/x"))
    with pytest.raises(ImageError, match="not encrypted"):
        repository(secure, options).manifest("1")
    secure.lie("GET", "/manifests/", needs(BEARER, bearer(other)))
    with pytest.raises(ImageError, match="not encrypted"):
        repository(secure, options).manifest("1")
    assert not other.seen


def test_an_upload_never_becomes_http(
    secure: LyingRegistry, identity: Identity, other: LyingRegistry, tmp_path: Path
) -> None:
    from vmrun.image.registry.artifacts import RegistryArtifacts

    options = over_tls(secure, identity, tmp_path)
    secure.lie("POST", "/uploads/", status(202, Location=f"{other.url}/upload"))
    with pytest.raises(ImageError, match="not encrypted"):
        RegistryArtifacts(repository(secure, options, push=True)).put_blob("a/b", b"private")
    assert not other.seen


def test_the_registrys_ca_is_good_for_its_token_server(
    secure: LyingRegistry, identity: Identity, tmp_path: Path
) -> None:
    options = over_tls(secure, identity, tmp_path)
    with lying_registry(identity) as tokens:
        secure.lie("GET", "/v2/", needs(BEARER, bearer(tokens)))
        tokens.lie("GET", "/token", status(200, gives()))
        assert repository(secure, options).manifest("1")
        assert tokens.seen[0].authorization == BASIC


def test_without_its_ca(secure: LyingRegistry, tmp_path: Path) -> None:
    options = RegistryOptions(auth_file=logged_in(secure.host, tmp_path))
    with pytest.raises(ImageError, match="certificate verify failed") as caught:
        repository(secure, options).manifest("1")
    assert "--cert-dir" in caught.value.hint
    assert not secure.seen


def test_another_ca(secure: LyingRegistry, identity: Identity, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    options = over_tls(secure, certified(tmp_path / "else"), tmp_path)
    with pytest.raises(ImageError, match="certificate verify failed"):
        repository(secure, options).manifest("1")
    assert not secure.seen


def test_a_certificate_for_another_name(
    secure: LyingRegistry, identity: Identity, tmp_path: Path
) -> None:
    port = secure.host.partition(":")[2]
    cert_dir = trusting(tmp_path, identity, f"localhost:{port}")
    options = RegistryOptions(cert_dirs=(cert_dir,), auth_file=logged_in("x", tmp_path))
    with pytest.raises(ImageError, match=r"(?i)hostname|mismatch"):
        Repository(parse_reference(f"localhost:{port}/team/app:1"), options).manifest("1")


def test_a_ca_that_is_none(secure: LyingRegistry, identity: Identity, tmp_path: Path) -> None:
    options = over_tls(secure, identity, tmp_path)
    (tmp_path / "certs.d" / secure.host / "ca.crt").write_text("no certificate")
    with pytest.raises(ImageError, match=r"certificate .*ca\.crt"):
        repository(secure, options).manifest("1")


def test_only_the_registry_sees_the_clients_certificate(identity: Identity, tmp_path: Path) -> None:
    import ssl

    from vmrun.image.registry.tls import certificates, make_context

    folder = trusting(tmp_path, identity, "registry.example.com") / "registry.example.com"
    (folder / "client.cert").write_bytes(identity.chain.read_bytes())
    found = certificates("registry.example.com", (tmp_path / "certs.d",))
    with pytest.raises(ImageError, match=r"client\.cert"):  # its key is missing
        make_context(found, known=True)
    make_context(found, known=False)
    (folder / "client.key").write_bytes(identity.key.read_bytes())
    assert make_context(found, known=True).minimum_version is ssl.TLSVersion.TLSv1_2


# --- parsing -------------------------------------------------------------------------------


def test_challenges_as_the_rfc_writes_them() -> None:
    header = (
        'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple", Negotiate'
    )
    first, second, third = parse_challenges(header)
    assert (first.scheme, second.scheme, third.scheme) == ("newauth", "basic", "negotiate")
    assert first.parameters == {"realm": "apps", "type": "1", "title": 'Login to "apps"'}
    assert second.parameters == {"realm": "simple"}


@given(st.text(max_size=300))
def test_any_challenge_is_parsed_or_dropped(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.dictionaries(st.sampled_from(["realm", "service", "scope"]), st.text(max_size=50)))
def test_quoted_strings_come_back(parameters: dict[str, str]) -> None:
    quoted = {
        key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in parameters.items()
    }
    header = "Bearer " + ",".join(f'{key}="{value}"' for key, value in quoted.items())
    if not any(c in value for value in parameters.values() for c in "\n\r\v\f\x85\u2028\u2029"):
        assert parse_challenges(header)[0].parameters == parameters


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("127.255.0.1:5000", True),
        ("[::1]:5000", True),
        ("registry.example.com", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("127.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_loopback_by_name(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_hub_has_another_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def request(_self: object, method: str, url: str, **_: object) -> None:
        asked.append((method, url))
        raise OSError("no network here")

    monkeypatch.setattr("vmrun.image.registry.connections.PoolManager.request", request)
    (tmp_path / "config.json").write_text("{}")
    options = RegistryOptions(auth_file=tmp_path / "config.json")
    hub = "docker" + ".io/alpine:3"
    with pytest.raises(ImageError, match="no network here"):
        Repository(parse_reference(hub), options).manifest("3")
    expected = "https://registry-1.docker" + ".io/v2/library/alpine/manifests/3"
    assert set(asked) == {("GET", expected)}
