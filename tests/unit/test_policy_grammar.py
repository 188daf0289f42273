"""containers-policy.json: what is read, and that whatever cannot be enforced is refused at once."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.image.reference import parse_reference
from vmrun.model.errors import SettingsError
from vmrun.policy.identity import (
    DockerName,
    ExactReference,
    ExactRepository,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    RemapIdentity,
)
from vmrun.policy.signature_policy import (
    BUILT_IN,
    AcceptAnything,
    KeySource,
    Reject,
    Signed,
    parse_policy,
)

REJECT = {"type": "reject"}
ANYTHING = {"type": "insecureAcceptAnything"}
KEY = base64.b64encode(b"PEM").decode()


def parse(document: object) -> Any:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_policy(data, "policy.json")


def signed(**fields: object) -> dict[str, object]:
    return {"type": "sigstoreSigned", **fields}


def identity(value: object) -> dict[str, object]:
    return signed(keyData=KEY, signedIdentity=value)


def test_requirements_of_every_supported_kind() -> None:
    policy = parse({"default": [REJECT, ANYTHING, signed(keyPath="/etc/keys/a.pub")]})
    assert policy.default == (
        Reject(),
        AcceptAnything(),
        Signed((KeySource(path="/etc/keys/a.pub", where="/etc/keys/a.pub"),), _DEFAULT),
    )


_DEFAULT = MatchRepoDigestOrExact()


@pytest.mark.parametrize(
    ("field", "value", "paths", "datas"),
    [
        ("keyPath", "/a", ["/a"], [b""]),
        ("keyPaths", ["/a", "/b"], ["/a", "/b"], [b"", b""]),
        ("keyData", KEY, [""], [b"PEM"]),
        ("keyDatas", [KEY, KEY], ["", ""], [b"PEM", b"PEM"]),
    ],
)
def test_keys_of_every_kind(
    field: str, value: object, paths: list[str], datas: list[bytes]
) -> None:
    [requirement] = parse({"default": [signed(**{field: value})]}).default
    assert [key.path for key in requirement.keys] == paths
    assert [key.data for key in requirement.keys] == datas


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"type": "matchExact"}, MatchExact()),
        ({"type": "matchRepoDigestOrExact"}, MatchRepoDigestOrExact()),
        ({"type": "matchRepository"}, MatchRepository()),
        (
            {"type": "exactReference", "dockerReference": "a.example.com/b:c"},
            ExactReference(DockerName("a.example.com/b", "c")),
        ),
        (
            {"type": "exactRepository", "dockerRepository": "a.example.com/b"},
            ExactRepository("a.example.com/b"),
        ),
        (
            {"type": "remapIdentity", "prefix": "mirror:5000", "signedPrefix": "a.example.com/b"},
            RemapIdentity("mirror:5000", "a.example.com/b"),
        ),
    ],
)
def test_identities_of_every_kind(written: object, meant: object) -> None:
    assert parse({"default": [identity(written)]}).default[0].identity == meant


def test_transports_of_other_readers_are_left_alone() -> None:
    policy = parse({"default": [REJECT], "transports": {"containers-storage": {"": [ANYTHING]}}})
    assert policy.requirements(parse_reference("oci:/x"))[1] == (Reject(),)


BAD: list[tuple[str, object, str]] = [
    ("not json", b"{", "malformed"),
    ("not utf-8", b'{"default": "\xff"}', "malformed"),
    ("empty", b"", "malformed"),
    ("a list", [], "not a JSON object"),
    ("no default", {}, "default"),
    ("default is null", {"default": None}, "default"),
    ("default is one object", {"default": REJECT}, "default"),
    ("default is empty", {"default": []}, "empty list"),
    ("unknown key", {"default": [REJECT], "defaults": []}, "'defaults'"),
    ("a key in capitals", {"Default": [REJECT], "default": [REJECT]}, "'Default'"),
    ("twice the same key", b'{"default":[{"type":"reject"}],"default":[]}', "duplicate key"),
    (
        "twice the same scope",
        b'{"default":[{"type":"reject"}],"transports":{"docker":{"a.b":[{"type":"reject"}],'
        b'"a.b":[{"type":"insecureAcceptAnything"}]}}}',
        "duplicate key",
    ),
    ("transports is null", {"default": [REJECT], "transports": None}, "'transports'"),
    ("transports is a list", {"default": [REJECT], "transports": []}, "'transports'"),
    ("a transport is null", {"default": [REJECT], "transports": {"docker": None}}, "'docker'"),
    ("misspelt transport", {"default": [REJECT], "transports": {"dokcer": {}}}, "'dokcer'"),
    ("requirement is a string", {"default": ["reject"]}, "default[0]"),
    ("requirement without type", {"default": [{}]}, "unknown requirement ''"),
    ("type is null", {"default": [{"type": None}]}, "unknown requirement"),
    ("type is a number", {"default": [{"type": 1}]}, "'type'"),
    ("type in other capitals", {"default": [{"type": "Reject"}]}, "'Reject'"),
    ("key named Type", {"default": [{"Type": "reject"}]}, "unknown requirement"),
    ("more beside reject", {"default": [{**REJECT, "keyPath": "/a"}]}, "'keyPath'"),
    ("more beside anything", {"default": [{**ANYTHING, "x": 1}]}, "'x'"),
    ("signedBy", {"default": [{"type": "signedBy", "keyType": "GPGKeys"}]}, "signedBy is not"),
    ("signedBaseLayer", {"default": [{"type": "signedBaseLayer"}]}, "signedBaseLayer is not"),
    ("no key", {"default": [signed()]}, "exactly one of keyPath"),
    ("two kinds of key", {"default": [signed(keyPath="/a", keyData=KEY)]}, "exactly one"),
    ("key null", {"default": [signed(keyPath=None)]}, "keyPath"),
    ("null beside a key", {"default": [signed(keyData=KEY, keyPath=None)]}, "exactly one"),
    ("key list empty", {"default": [signed(keyPaths=[])]}, "1 to 256"),
    ("key list null", {"default": [signed(keyPaths=None)]}, "1 to 256"),
    ("key list of numbers", {"default": [signed(keyDatas=[1])]}, "keyDatas[0]"),
    ("key list is a string", {"default": [signed(keyPaths="/a")]}, "keyPaths"),
    ("key path is a list", {"default": [signed(keyPath=["/a"])]}, "keyPath"),
    ("relative key path", {"default": [signed(keyPath="a.pub")]}, "absolute"),
    ("one relative key path", {"default": [signed(keyPaths=["/a", "./b"])]}, "absolute"),
    ("key path empty", {"default": [signed(keyPath="")]}, "absolute"),
    ("not base64", {"default": [signed(keyData="-----BEGIN")]}, "base64"),
    ("base64 not in ASCII", {"default": [signed(keyData="ä")]}, "base64"),
    ("key data empty", {"default": [signed(keyData="")]}, "empty"),
    ("one key data empty", {"default": [signed(keyDatas=[KEY, ""])]}, "empty"),
    ("NUL in a path", {"default": [signed(keyPath="/a\0b")]}, "NUL"),
    *(
        (name, {"default": [signed(**{name: value})]}, f"{name!r} is not supported")
        for name, value in (
            ("fulcio", {"oidcIssuer": "x"}),
            ("pki", {"caRootsPath": "/a"}),
            ("rekorPublicKeyPath", "/a"),
            ("rekorPublicKeyPaths", ["/a"]),
            ("rekorPublicKeyData", KEY),
            ("rekorPublicKeyDatas", [KEY]),
        )
    ),
    (
        "rekor beside a key",
        {"default": [signed(keyData=KEY, rekorPublicKeyData=KEY)]},
        "'rekorPublicKeyData' is not supported",
    ),
    ("unknown key of a signature", {"default": [signed(keyData=KEY, keydata=KEY)]}, "'keydata'"),
    ("identity null", {"default": [identity(None)]}, "signedIdentity"),
    ("identity a string", {"default": [identity("matchExact")]}, "signedIdentity"),
    ("identity empty", {"default": [identity({})]}, "signedIdentity"),
    ("identity unknown", {"default": [identity({"type": "matchAll"})]}, "'matchAll'"),
    (
        "more in matchExact",
        {"default": [identity({"type": "matchExact", "prefix": "a"})]},
        "prefix",
    ),
    *(
        (f"exactReference {name!r}", {"default": [identity(value)]}, "dockerReference")
        for name in (None, "", "a.example.com/b", "b:1", "busybox", "a.example.com/B:1", "a b/c:1")
        for value in ({"type": "exactReference", "dockerReference": name},)
    ),
    *(
        (f"exactRepository {name!r}", {"default": [identity(value)]}, "dockerRepository")
        for name in (None, "", "a.example.com/b:1", "busybox", "a.example.com")
        for value in ({"type": "exactRepository", "dockerRepository": name},)
    ),
    *(
        (f"remapIdentity {prefix!r}", {"default": [identity(value)]}, "HOST or HOST/PATH")
        for prefix in (None, "", "a.example.com/", "a.example.com/b:1", "/b", "a b")
        for value in (
            {"type": "remapIdentity", "prefix": prefix, "signedPrefix": "a.example.com"},
            {"type": "remapIdentity", "prefix": "a.example.com", "signedPrefix": prefix},
        )
    ),
    ("nested too deep", b'{"default":' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
    ("far too deep", b'{"default":' + b"[" * 100_000, "nested"),
]


@pytest.mark.parametrize(("document", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_cannot_be_enforced_is_an_error(document: object, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(document)
    assert said in caught.value.message
    assert caught.value.message.startswith("policy.json")
    assert "\n" not in caught.value.message
    assert "policy.md" in caught.value.hint


def test_the_place_in_the_file_is_named() -> None:
    bad = {"default": [REJECT], "transports": {"docker": {"a.example.com": [REJECT, {"type": 1}]}}}
    with pytest.raises(SettingsError, match=r"transports: docker: a\.example\.com\[1\]"):
        parse(bad)


def test_a_bad_requirement_in_a_foreign_transport_is_an_error() -> None:
    with pytest.raises(SettingsError, match="dir"):
        parse({"default": [REJECT], "transports": {"dir": {"/x": [{"type": "signedBy"}]}}})


def test_a_policy_that_is_too_large_is_an_error() -> None:
    with pytest.raises(SettingsError, match="limit"):
        parse(b'{"default":[{"type":"reject"}]}' + b" " * (4 << 20))


def test_without_a_policy_everything_is_rejected() -> None:
    for image in ("registry.example.com/a:1", "oci:/x", "docker-daemon:a:1", "docker-archive:/x"):
        assert BUILT_IN.requirements(parse_reference(image)) == ("default", (Reject(),))


_KEY = st.sampled_from(
    ["default", "transports", "docker", "", "type", "keyPath", "keyDatas", "signedIdentity", "x"]
) | st.text(max_size=4)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY, inner, max_size=3),
    max_leaves=12,
)


@given(_JSON | st.fixed_dictionaries({"default": _JSON, "transports": _JSON}))
def test_whatever_is_written_there_is_read_or_refused(value: object) -> None:
    try:
        policy = parse(value)
    except SettingsError:
        return
    assert policy.default


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(SettingsError):
        parse(data)
