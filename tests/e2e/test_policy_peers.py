"""The same policy, the same image: what vmrun decides against what skopeo does.

skopeo is containers/image, whose rules vmrun's policy follows. Where vmrun is stricter the test
says so by name; it must never be laxer.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import peers
from tests.images import plain_image
from tests.peers import Peer
from tests.unit.test_policy_grammar import BAD
from vmrun.image.reference import parse_reference
from vmrun.image.registry.artifacts import open_artifacts
from vmrun.image.registry.options import RegistryOptions
from vmrun.model.digest import Digest
from vmrun.model.errors import Refused, SettingsError
from vmrun.model.image import ImageDigests
from vmrun.policy.signature_policy import parse_policy
from vmrun.policy.trust_rules import TrustRules
from vmrun.run.images import absolute
from vmrun.trust.decision import Subject, decide
from vmrun.trust.files import TrustLayer
from vmrun.trust.keys import PrivateKey
from vmrun.trust.ledger import Ledger
from vmrun.trust.signatures import collect
from vmrun.trust.signing import sign_image

REJECT, ANYTHING = [{"type": "reject"}], [{"type": "insecureAcceptAnything"}]
IMAGE = plain_image()
DIGEST = Digest.of(IMAGE.manifest)
ALICE, MALLORY = PrivateKey.generate(), PrivateKey.generate()
HTTP = RegistryOptions(plain_http=True)


@dataclass(frozen=True)
class Site:
    """A registry, and both programs."""

    host: str
    folder: Path
    skopeo: Peer

    def skopeo_says(self, document: object, source: str) -> str:
        """accepted, refused, or unreadable: of the policy."""
        policy, target = self.folder / "policy.json", self.folder / "copied"
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        policy.write_bytes(data)
        shutil.rmtree(target, ignore_errors=True)
        finished = self.skopeo(
            *("--policy", policy, "--registries.d", self.folder / "registries.d", "copy"),
            *("--src-tls-verify=false", source, f"dir:{target}"),
        )
        if finished.status == 0:
            return "accepted"
        if "Error loading trust policy" in finished.text:
            return "unreadable"
        assert "Source image rejected" in finished.text, finished.text
        return "refused"

    def vmrun_says(self, document: object, name: str) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        try:
            policy = parse_policy(data, "policy")
        except SettingsError:
            return "unreadable"
        reference = parse_reference(name)
        digests = ImageDigests((DIGEST,), Digest.of(IMAGE.config), ())
        found = collect(open_artifacts(reference, HTTP), digests.lineage)
        layer = TrustLayer(policy, TrustRules(), (("policy", DIGEST),))
        ledger = Ledger(self.folder / "no-ledger")
        try:
            decide(Subject(reference, digests, found), [layer], ledger, now=time.time())
        except Refused:
            return "refused"
        return "accepted"

    def push(self, name: str, identity: str = "", key: PrivateKey = ALICE) -> str:
        full = f"{self.host}/{name}"
        self.skopeo.must(
            *("--insecure-policy", "copy", "--dest-tls-verify=false"),
            *(f"oci:{self.folder / 'image'}:demo", f"docker://{full}"),
        )
        if identity:
            store = open_artifacts(parse_reference(full), HTTP, push=True)
            stored = store.manifest(DIGEST)
            assert stored is not None
            said = identity.replace("HOST", self.host)
            sign_image(store, stored.descriptor, said, key, now=time.time())
        return full


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    folder = tmp_path_factory.mktemp("site")
    skopeo = peers.skopeo(folder, "")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "config.yml").write_text(
        "version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: "
        f"{folder / 'data'}}}\nhttp: {{addr: '{host}'}}\n"
    )
    (folder / "registries.d").mkdir()
    (folder / "registries.d" / "test.yaml").write_text(
        f"docker:\n  {host}:\n    use-sigstore-attachments: true\n"
    )
    (folder / "alice.pub").write_bytes(ALICE.public.pem)
    IMAGE.write_layout(folder / "image")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(host[10:])), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield Site(host, folder, skopeo)
    finally:
        process.terminate()
        process.wait(30)


# --- identities ------------------------------------------------------------------------------

REPOSITORIES = {
    "signed/app": "HOST/signed/app:1",
    "other-tag/app": "HOST/other-tag/app:2",
    "no-tag/app": "HOST/no-tag/app",
    "other-repository/app": "HOST/signed/app:1",
    "by-digest/app": f"HOST/by-digest/app@{DIGEST}",
    "unsigned/app": "",
    "short-name/app": "app:1",
    "mirror/signed/app": "HOST/signed/app:1",
}
IDENTITIES: list[dict[str, str] | None] = [
    None,
    {"type": "matchExact"},
    {"type": "matchRepoDigestOrExact"},
    {"type": "matchRepository"},
    {"type": "exactReference", "dockerReference": "HOST/signed/app:1"},
    {"type": "exactReference", "dockerReference": f"HOST/by-digest/app@{DIGEST}"},
    {"type": "exactRepository", "dockerRepository": "HOST/signed/app"},
    {"type": "remapIdentity", "prefix": "HOST/mirror", "signedPrefix": "HOST"},
    {"type": "remapIdentity", "prefix": "HOST/mirror/signed/app", "signedPrefix": "HOST"},
    {"type": "remapIdentity", "prefix": "HOST/mirr", "signedPrefix": "HOST/x"},
    {"type": "remapIdentity", "prefix": "HOST", "signedPrefix": "registry.example.com"},
]


@pytest.fixture(scope="module")
def pushed(site: Site) -> dict[str, str]:
    names = {r: site.push(f"{r}:1", identity) for r, identity in REPOSITORIES.items()}
    names["mallory"] = site.push("mallory/app:1", "HOST/mallory/app:1", MALLORY)
    return names


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda i: "-".join(i.values()) if i else "no")
def test_both_accept_the_same_signatures(
    identity: dict[str, str] | None, site: Site, pushed: dict[str, str]
) -> None:
    requirement: dict[str, Any] = {
        "type": "sigstoreSigned", "keyPath": str(site.folder / "alice.pub"),
    }  # fmt: skip
    if identity:
        requirement["signedIdentity"] = {
            key: value.replace("HOST", site.host) for key, value in identity.items()
        }
    document = {"default": [requirement]}
    differ = {}
    seen = set()
    for name in pushed.values():
        for asked in (name, f"{name.rpartition(':')[0]}@{DIGEST}"):
            theirs = site.skopeo_says(document, f"docker://{asked}")
            ours = site.vmrun_says(document, asked)
            seen.add(ours)
            if ours != theirs:
                differ[asked.removeprefix(site.host)] = (ours, theirs)
    assert differ == {}
    assert "unreadable" not in seen
    assert "refused" in seen


# --- scopes ----------------------------------------------------------------------------------

SCOPES = (
    "", "HOST", "127.0.0.1", "*.0.0.1", "*.0.1", "*.1", "HOST/signed", "HOST/signed/app",
    "HOST/signed/app:1", "HOST/signed/app:2", f"HOST/signed/app@{DIGEST}", "HOST/sign",
)  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES)
def test_both_find_the_same_scope(scope: str, site: Site, pushed: dict[str, str]) -> None:
    scope = scope.replace("HOST", site.host)
    name = pushed["signed/app"]
    for asked in (name, f"{name.rpartition(':')[0]}@{DIGEST}"):
        for inside, outside in ((REJECT, ANYTHING), (ANYTHING, REJECT)):
            document = {"default": outside, "transports": {"docker": {scope: inside}}}
            theirs = site.skopeo_says(document, f"docker://{asked}")
            assert site.vmrun_says(document, asked) == theirs, (asked, document)


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_both_find_the_same_scope_of_a_path(transport: str, site: Site) -> None:
    folder = site.folder / "paths"
    path = folder / "a" / "image"
    shutil.rmtree(folder, ignore_errors=True)
    path.parent.mkdir(parents=True)
    if transport == "oci":
        IMAGE.write_layout(path)
    elif transport == "oci-archive":
        IMAGE.write_oci_archive(path)
    else:
        IMAGE.write_docker_archive(path)
    (folder / "link").symlink_to("a")

    def ours(document: object, source: str) -> str:
        try:
            policy = parse_policy(json.dumps(document).encode(), "policy")
        except SettingsError:
            return "unreadable"
        _, found = policy.requirements(absolute(parse_reference(source)))
        return "refused" if str(found[0]) == "reject" else "accepted"

    scopes = [
        "",
        str(path),
        str(path.parent),
        str(folder),
        str(folder / "link"),
        "/",
        "a",
        f"{path}/",
    ]
    for scope in scopes:
        for source in (f"{transport}:{path}", f"{transport}:{folder}/link/image"):
            document = {"default": ANYTHING, "transports": {transport: {scope: REJECT}}}
            theirs = site.skopeo_says(document, source)
            assert ours(document, source) == theirs, (scope, source)


# --- the grammar -----------------------------------------------------------------------------

STRICTER = {
    "misspelt transport",
    # Found there when the policy is applied, or never:
    "key data empty", "one key data empty", "relative key path", "one relative key path",
    "NUL in a path", "null beside a key",
    # vmrun asks no transparency log:
    "rekor beside a key",
    # There a short name is one of Docker's own registry, and a tag is dropped:
    "exactReference 'b:1'", "exactRepository 'busybox'", "exactRepository 'a.example.com'",
    "exactRepository 'a.example.com/b:1'",
}  # fmt: skip
"""Of the bad policies those that skopeo reads all the same."""


def readable(site: Site, document: object) -> bool:
    return site.skopeo_says(document, f"oci:{site.folder / 'image'}:demo") != "unreadable"


def test_whatever_skopeo_refuses_to_read_is_refused(site: Site) -> None:
    """And of what it reads all the same it is known by name."""
    read = {name for name, document, _ in BAD if readable(site, document)}
    assert sorted(read) == sorted(STRICTER)


def mutants(rounds: int) -> Iterator[object]:
    """Policies near a good one: one or two values replaced, removed, or put elsewhere."""
    choice = random.Random(20)  # the same ones each time
    keys = {"type": "sigstoreSigned", "keyData": "UEVN"}
    good = {
        "default": [{"type": "reject"}, {**keys, "signedIdentity": {"type": "matchExact"}}],
        "transports": {
            "docker": {
                "": [{"type": "insecureAcceptAnything"}],
                "a.example.com/b": [
                    {
                        **keys,
                        "signedIdentity": {
                            "type": "remapIdentity", "prefix": "a.b", "signedPrefix": "c.d/e",
                        },
                    },
                    {
                        "type": "sigstoreSigned", "keyPaths": ["/a"],
                        "signedIdentity": {"type": "exactReference", "dockerReference": "a.b/c:1"},
                    },
                ],
            },
            "oci": {"/srv": [keys]},
        },
    }  # fmt: skip
    values = (None, {}, [], "", "reject", 1, True, [None], ["/a"], {"type": "reject"}, "a.b/c:1")
    names = ("type", "keyPath", "keyData", "signedIdentity", "prefix", "default", "x", "/srv/", "")
    for _ in range(rounds):
        document = copy.deepcopy(good)
        for _ in range(choice.choice((1, 1, 2))):
            holders = list(containers(document))
            holder = choice.choice(holders)
            if isinstance(holder, list):
                holder[:] = choice.choice(([], holder * 2, [*holder, choice.choice(values)]))
            elif holder and choice.random() < 0.5:
                holder[choice.choice(list(holder))] = copy.deepcopy(choice.choice(values))
            elif holder and choice.random() < 0.4:
                del holder[choice.choice(list(holder))]
            else:
                holder[choice.choice(names)] = copy.deepcopy(choice.choice(values))
        yield document


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def test_whatever_vmrun_reads_skopeo_reads_too(site: Site) -> None:
    accepted = 0
    for document in mutants(250):
        try:
            parse_policy(json.dumps(document).encode(), "policy")
        except SettingsError:
            continue
        accepted += 1
        assert readable(site, document), json.dumps(document)
    assert accepted > 10
