"""Signatures and attestations between vmrun and live peers: cosign 2 and 3, and skopeo.

What each of them accepts and refuses is asked of the program itself, in both directions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests import peers
from tests.images import (
    OCI_MANIFEST,
    TestImage,
    blob_name,
    descriptor,
    dumps,
    plain_image,
    write_files,
)
from tests.peers import Peer
from tests.registry import RealRegistry
from vmrun.image.reference import parse_reference
from vmrun.image.registry.artifacts import RegistryArtifacts, open_artifacts
from vmrun.image.registry.options import RegistryOptions
from vmrun.model.image import Descriptor
from vmrun.trust.attestations import CYCLONEDX, VULNERABILITIES, attest, attestations
from vmrun.trust.keys import PrivateKey, PublicKey

PASSPHRASE = "correct horse"
COSIGN_HTTP = ("--allow-insecure-registry", "--allow-http-registry")
COSIGN_VERIFY = ("--insecure-ignore-tlog", *COSIGN_HTTP)
COSIGN_SIGN = ("--tlog-upload=false", "--yes", *COSIGN_HTTP)
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
REPORT = {
    "invocation": {"parameters": None, "uri": "", "event_id": "", "builder.id": ""},
    "scanner": {
        "uri": "https://scanner.example.com",
        "version": "1.0",
        "db": {"uri": "", "version": ""},
        "result": {"findings": []},
    },
    "metadata": {
        "scanStartedOn": "2026-01-02T03:04:05Z",
        "scanFinishedOn": "2026-01-02T03:04:06Z",
    },
}


@dataclass(frozen=True)
class Site:
    """A registry, two key pairs, and everything that signs and verifies."""

    host: str
    folder: Path
    cosign: Peer
    skopeo: Peer
    vmrun_program: list[str]

    @property
    def ours(self) -> Path:
        """A key pair that vmrun made, without suffix."""
        return self.folder / "ours"

    @property
    def theirs(self) -> Path:
        """A key pair that cosign made, without suffix."""
        return self.folder / "theirs"

    def vmrun(self, *arguments: str | Path) -> tuple[int, str]:
        finished = subprocess.run(
            [*self.vmrun_program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return finished.returncode, finished.stdout + finished.stderr

    def must(self, *arguments: str | Path) -> str:
        status, text = self.vmrun(*arguments)
        assert status == 0, text
        return text

    def push(self, repository: str, image: TestImage | None = None, *, all: bool = False) -> str:
        """A new image in the registry, unsigned, under the tag ``1``."""
        layout = self.folder / repository.replace("/", "-")
        name = f"{self.host}/{repository}:1"
        (image or plain_image(settings={"Labels": {"of": repository}})).write_layout(layout)
        self.copy(f"oci:{layout}:demo", f"docker://{name}", *(["--all"] if all else []))
        return name

    def copy(self, source: str, target: str, *options: str) -> None:
        options = ("--src-tls-verify=false", "--dest-tls-verify=false", *options)
        self.skopeo.must("--insecure-policy", "copy", *options, source, target)

    def sign(self, name: str, *options: str, key: Path | None = None) -> str:
        key = key or self.ours.with_suffix(".key")
        return self.must("image", "sign", "--plain-http", "--key", key, *options, name)

    def verify(self, name: str, key: Path, *options: str) -> tuple[int, str]:
        """What vmrun says: is it signed, by this key, under this very name?"""
        public = key.with_suffix(".pub")
        return self.vmrun("image", "verify", "--plain-http", "--key", public, *options, name)

    def cosign_verifies(self, name: str, key: Path, *options: str | Path) -> bool:
        public = key.with_suffix(".pub")
        return self.cosign("verify", "--key", public, *COSIGN_VERIFY, *options, name).status == 0

    def skopeo_accepts(self, name: str, key: Path) -> bool:
        """Whether containers/image's policy lets it be copied, by the default identity."""
        policy = self.folder / "policy.json"
        signed = {"type": "sigstoreSigned", "keyPath": str(key.with_suffix(".pub"))}
        policy.write_text(
            json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {"": [signed]}}})
        )
        target = self.folder / "copied"
        shutil.rmtree(target, ignore_errors=True)
        finished = self.skopeo(
            *("--policy", policy, "--registries.d", self.registries_d()),
            *("copy", "--src-tls-verify=false", f"docker://{name}", f"dir:{target}"),
        )
        return finished.status == 0

    def registries_d(self) -> Path:
        folder = self.folder / "registries.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.yaml").write_text(
            f"docker:\n  {self.host}:\n    use-sigstore-attachments: true\n"
        )
        return folder

    def store(self, name: str, *, push: bool = False) -> tuple[RegistryArtifacts, Descriptor]:
        """The artifacts beside an image, and its own descriptor."""
        reference = parse_reference(name)
        store = open_artifacts(reference, RegistryOptions(plain_http=True), push=push)
        found = store.manifest(reference.tag or "")
        assert found is not None
        return store, found.descriptor

    def key(self, pair: Path) -> PrivateKey:
        return PrivateKey.load(pair.with_suffix(".key").read_bytes(), PASSPHRASE.encode(), "key")


@pytest.fixture(scope="module")
def site(
    plain_registry: RealRegistry,
    tmp_path_factory: pytest.TempPathFactory,
    vmrun_program: list[str],
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    cosign, skopeo = peers.cosign(folder, PASSPHRASE), peers.skopeo(folder, PASSPHRASE)
    made = Site(plain_registry.host, folder, cosign, skopeo, vmrun_program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSIGN_PASSWORD", PASSPHRASE)
        patch.delenv("VMRUN_KEY_PASSWORD", raising=False)
        made.must("key", "generate", "--out", made.ours)
        cosign.must("generate-key-pair", "--output-key-prefix", made.theirs)
        yield made


@pytest.fixture(scope="module")
def cosign_3(site: Site) -> Peer:
    return peers.cosign_3(site.folder, PASSPHRASE)


@pytest.fixture(scope="module")
def trusted_root(site: Site) -> Path:
    """Without one cosign asks Sigstore's servers for theirs, keys or not."""
    kind = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
    path = site.folder / "trusted-root.json"
    path.write_text(json.dumps({"mediaType": kind}))
    return path


def signing_config(site: Site) -> Path:
    """For cosign 3: neither logs nor timestamps."""
    kind = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
    any_of_none = {"selector": "ANY"}
    path = site.folder / "signing-config.json"
    fields = {"mediaType": kind, "rekorTlogConfig": any_of_none, "tsaConfig": any_of_none}
    path.write_text(json.dumps(fields))
    return path


# --- keys ------------------------------------------------------------------------------------


def test_cosign_reads_keys_that_vmrun_made(site: Site) -> None:
    printed = site.cosign.must("public-key", "--key", site.ours.with_suffix(".key"))
    mine = PublicKey.load(site.ours.with_suffix(".pub").read_bytes(), "mine")
    assert PublicKey.load(printed.out.encode(), "cosign's").key_id == mine.key_id


@pytest.mark.parametrize("kind", ["p384", "rsa", "ed25519"])
def test_other_kinds_of_keys_sign_for_both(site: Site, kind: str) -> None:
    """cosign of Debian 13 imports Ed25519 keys only, but signs with all of these."""
    generated = {
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    key, pair = PrivateKey(generated, kind), site.folder / kind
    pair.with_suffix(".key").write_bytes(key.encrypted_pem(PASSPHRASE.encode()))
    pair.with_suffix(".pub").write_bytes(key.public.pem)
    name = site.push(f"keys/{kind}")
    site.cosign.must(
        *("sign", "--key", pair.with_suffix(".key"), "--sign-container-identity", name),
        *(*COSIGN_SIGN, name),
    )
    assert site.verify(name, pair)[0] == 0
    name = site.push(f"keys/{kind}-ours")
    site.sign(name, key=pair.with_suffix(".key"))
    assert site.cosign_verifies(name, pair)
    assert not site.cosign_verifies(name, site.ours)


def test_vmrun_signs_with_a_key_that_cosign_imported(site: Site) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    plain, pair = site.folder / "plain.pem", site.folder / "imported"
    plain.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    site.cosign.must("import-key-pair", "--key", plain, "--output-key-prefix", pair)
    name = site.push("keys/imported")
    site.sign(name, key=pair.with_suffix(".key"))
    assert site.cosign_verifies(name, pair)
    assert site.verify(name, pair)[0] == 0


# --- what vmrun signs ------------------------------------------------------------------------


def test_cosign_verifies_what_vmrun_signed(site: Site) -> None:
    name = site.push("team/ours")
    assert not site.cosign_verifies(name, site.ours)
    site.sign(name, "-a", "team=payments")
    found = site.cosign.must(
        "verify", "--key", site.ours.with_suffix(".pub"), *COSIGN_VERIFY, "-a", "team=payments",
        name,
    )  # fmt: skip
    (payload,) = json.loads(found.out)
    assert payload["critical"]["identity"]["docker-reference"] == name
    assert not site.cosign_verifies(name, site.theirs)
    assert not site.cosign_verifies(name, site.ours, "-a", "team=other")


def test_cosign_2_verifies_the_bundle_as_a_statement(site: Site, trusted_root: Path) -> None:
    name = site.push("team/bundle2")
    site.sign(name, "--format", "bundle")
    assert not site.cosign_verifies(name, site.ours)  # cosign 2 looks for simple signing only
    options = ("--new-bundle-format", "--trusted-root", trusted_root, "--type", SIGN_PREDICATE)
    for key, status in ((site.ours, 0), (site.theirs, 1)):
        public = key.with_suffix(".pub")
        found = site.cosign("verify-attestation", "--key", public, *options, *COSIGN_VERIFY, name)
        assert min(found.status, 1) == status, found.text


def test_cosign_3_verifies_the_bundle(site: Site, cosign_3: Peer, trusted_root: Path) -> None:
    name = site.push("team/bundle3")
    site.sign(name, "--format", "bundle")
    options = ("--trusted-root", trusted_root, *COSIGN_VERIFY)
    cosign_3.must("verify", "--key", site.ours.with_suffix(".pub"), *options, name)
    refused = cosign_3("verify", "--key", site.theirs.with_suffix(".pub"), *options, name)
    assert refused.status != 0


def test_skopeo_accepts_what_vmrun_signed(site: Site) -> None:
    name = site.push("team/skopeo")
    assert not site.skopeo_accepts(name, site.ours)
    site.sign(name)
    assert site.skopeo_accepts(name, site.ours)
    assert not site.skopeo_accepts(name, site.theirs)


def test_an_image_of_several_platforms_is_accepted_by_everybody(site: Site) -> None:
    image, other = plain_image(), plain_image(architecture="arm64")
    platforms = [
        descriptor(OCI_MANIFEST, one.manifest, platform={"os": "linux", "architecture": arch})
        for one, arch in ((image, "amd64"), (other, "arm64"))
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    index = dumps({"schemaVersion": 2, "mediaType": kind, "manifests": platforms})
    notes = {"org.opencontainers.image.ref.name": "demo"}
    image.index = dumps(
        {"schemaVersion": 2, "manifests": [descriptor(kind, index, annotations=notes)]}
    )
    write_files(other.files() | {blob_name(index): index}, site.folder / "team-several")
    name = site.push("team/several", image, all=True)
    assert "signed 2 manifest(s)" in site.sign(name)
    assert site.cosign_verifies(name, site.ours)  # the index
    assert site.skopeo_accepts(name, site.ours)  # the manifest of its own platform
    assert site.verify(name, site.ours)[0] == 0


def test_cosign_verifies_a_saved_layout(site: Site) -> None:
    name = site.push("team/saved")
    site.sign(name)
    layout = site.folder / "saved"
    site.cosign.must("save", *COSIGN_HTTP, "--dir", layout, name)
    verify = ("verify", "--insecure-ignore-tlog", "--local-image", "--key")
    site.cosign.must(*verify, site.ours.with_suffix(".pub"), layout)
    assert site.cosign(*verify, site.theirs.with_suffix(".pub"), layout).status != 0
    # It is one image for vmrun, too, whose signatures cosign has left without their names.
    status, text = site.verify(f"oci:{layout}", site.ours, "--identity", name)
    assert status == 1
    assert "is not signed" in text


def test_what_cosign_has_copied_is_signed_for_its_old_name_only(site: Site) -> None:
    """cosign puts the image itself where the list of its referrers belongs."""
    name = site.push("team/to-copy")
    site.sign(name)
    copied = name.replace("to-copy", "copied")
    site.cosign.must("copy", *COSIGN_HTTP, name, copied)
    assert site.cosign_verifies(copied, site.ours)
    assert site.verify(copied, site.ours)[0] != 0
    status, text = site.verify(copied, site.ours, "--identity", name)
    assert status == 0, text
    site.sign(copied)
    assert site.verify(copied, site.ours)[0] == 0


def test_cosign_verifies_a_layout_that_vmrun_signed(site: Site) -> None:
    layout = plain_image().write_layout(site.folder / "own-layout")
    key = site.ours.with_suffix(".key")
    name = "registry.example.com/team/app:1"
    site.must("image", "sign", "--key", key, "--identity", name, f"oci:{layout}:demo")
    verify = ("verify", "--insecure-ignore-tlog", "--local-image", "--key")
    site.cosign.must(*verify, site.ours.with_suffix(".pub"), layout)
    assert site.cosign(*verify, site.theirs.with_suffix(".pub"), layout).status != 0


# --- what others sign ------------------------------------------------------------------------


def test_vmrun_verifies_what_cosign_signed(site: Site) -> None:
    name = site.push("team/theirs")
    identity = ("--sign-container-identity", name)
    for key in (site.theirs, site.ours):  # vmrun's key file, in cosign's hands, too
        site.cosign.must("sign", "--key", key.with_suffix(".key"), *identity, *COSIGN_SIGN, name)
        status, text = site.verify(name, key)
        assert status == 0, text
        assert f"signed as {name}" in text


def test_what_cosign_signs_by_itself_names_the_repository_only(site: Site, tmp_path: Path) -> None:
    name = site.push("team/untagged")
    site.cosign.must("sign", "--key", site.theirs.with_suffix(".key"), *COSIGN_SIGN, name)
    status, text = site.verify(name, site.theirs)
    assert status != 0
    assert f"is for '{name.removesuffix(':1')}'" in text
    policy = tmp_path / "policy.json"
    signed = {
        "type": "sigstoreSigned",
        "keyPath": str(site.theirs.with_suffix(".pub")),
        "signedIdentity": {"type": "matchRepository"},
    }
    policy.write_text(json.dumps({"default": [signed]}))
    site.must("image", "verify", "--plain-http", "--policy", policy, name)


def test_bundles_of_cosign_3_name_nothing_and_are_refused(site: Site, cosign_3: Peer) -> None:
    name = site.push("team/theirs3")
    key = site.theirs.with_suffix(".key")
    config = signing_config(site)
    cosign_3.must("sign", "--key", key, "--signing-config", config, "--yes", *COSIGN_HTTP, name)
    status, text = site.verify(name, site.theirs)
    assert status != 0
    assert "is for no name" in text


def test_vmrun_verifies_what_skopeo_signed(site: Site) -> None:
    name, signed = site.push("team/unsigned"), f"{site.host}/team/skopeo-signed:1"
    passphrase = site.folder / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")
    site.skopeo.must(
        *("--insecure-policy", "--registries.d", site.registries_d(), "copy"),
        *("--src-tls-verify=false", "--dest-tls-verify=false"),
        *("--sign-by-sigstore-private-key", site.theirs.with_suffix(".key")),
        *("--sign-passphrase-file", passphrase),
        *(f"docker://{name}", f"docker://{signed}"),
    )
    assert site.verify(signed, site.theirs)[0] == 0
    assert site.verify(signed, site.ours)[0] != 0
    assert site.verify(name, site.theirs)[0] != 0


def test_signatures_of_several_keys_stand_side_by_side(site: Site) -> None:
    name = site.push("team/both")
    key = site.theirs.with_suffix(".key")
    site.cosign.must("sign", "--key", key, "--sign-container-identity", name, *COSIGN_SIGN, name)
    site.sign(name)
    site.sign(name)
    for pair in (site.ours, site.theirs):
        assert site.cosign_verifies(name, pair)
        assert site.verify(name, pair)[0] == 0
    store, manifest = site.store(name)
    found = store.manifest(f"sha256-{manifest.digest.hex}.sig")
    assert found is not None
    assert len(json.loads(found.data)["layers"]) == 2  # signing again took its own place


# --- names -----------------------------------------------------------------------------------


def test_a_signature_does_not_follow_its_image_to_another_tag(site: Site) -> None:
    """The old signed image under the tag of the new one: cosign 2 accepts it."""
    name = site.push("team/moved")
    site.sign(name)
    moved = name.removesuffix(":1") + ":production"
    site.copy(f"docker://{name}", f"docker://{moved}")
    assert site.cosign_verifies(moved, site.ours)
    assert not site.skopeo_accepts(moved, site.ours)
    status, text = site.verify(moved, site.ours)
    assert status != 0
    assert f"is for '{name}'" in text


def test_a_signature_does_not_follow_its_image_to_another_repository(site: Site) -> None:
    name = site.push("team/origin")
    site.sign(name, "--format", "simple")
    _, manifest = site.store(name)
    copied, tag = f"{site.host}/team/elsewhere", f"sha256-{manifest.digest.hex}.sig"
    site.copy(f"docker://{name}", f"docker://{copied}:1")
    site.copy(
        f"docker://{name.removesuffix(':1')}:{tag}",
        f"docker://{copied}:{tag}",
        "--preserve-digests",
    )
    assert site.cosign_verifies(f"{copied}:1", site.ours)
    assert not site.skopeo_accepts(f"{copied}:1", site.ours)
    assert site.verify(f"{copied}:1", site.ours)[0] != 0
    assert site.verify(f"{copied}:1", site.ours, "--identity", name)[0] == 0


# --- attestations ----------------------------------------------------------------------------


def test_cosign_verifies_what_vmrun_attested(site: Site, trusted_root: Path) -> None:
    name = site.push("team/attested")
    store, manifest = site.store(name, push=True)
    attest(store, manifest, name, VULNERABILITIES, REPORT, site.key(site.ours), now=time.time())
    for form in ((), ("--new-bundle-format", "--trusted-root", trusted_root)):
        ask = ("verify-attestation", "--type", "vuln", *form, *COSIGN_VERIFY, "--key")
        site.cosign.must(*ask, site.ours.with_suffix(".pub"), name)
        assert site.cosign(*ask, site.theirs.with_suffix(".pub"), name).status != 0
    other = ("verify-attestation", "--type", "cyclonedx", *COSIGN_VERIFY, "--key")
    assert site.cosign(*other, site.ours.with_suffix(".pub"), name).status != 0


@pytest.mark.parametrize("form", ["legacy", "bundle"])
def test_vmrun_reads_what_cosign_attested(site: Site, form: str, tmp_path: Path) -> None:
    name = site.push(f"team/attested-{form}")
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    site.cosign.must(
        *("attest", "--key", site.theirs.with_suffix(".key"), "--type", "vuln"),
        *("--predicate", tmp_path / "report.json", *COSIGN_SIGN),
        *(["--new-bundle-format"] if form == "bundle" else []),
        name,
    )
    store, manifest = site.store(name)
    theirs, ours = site.key(site.theirs).public, site.key(site.ours).public
    (found,), _ = attestations(store, (manifest.digest,), VULNERABILITIES, [ours, theirs])
    assert found.key_id == theirs.key_id
    assert found.statement.predicate == REPORT
    none, why = attestations(store, (manifest.digest,), VULNERABILITIES, [ours])
    assert none == ()
    assert "by none of these keys" in why[0]
    assert attestations(store, (manifest.digest,), CYCLONEDX, [theirs])[0] == ()


def test_attestations_of_cosign_3_are_read_too(
    site: Site, cosign_3: Peer, trusted_root: Path, tmp_path: Path
) -> None:
    name = site.push("team/attested3")
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    cosign_3.must(
        *("attest", "--key", site.theirs.with_suffix(".key"), "--type", "vuln"),
        *("--predicate", tmp_path / "report.json", "--signing-config", signing_config(site)),
        *("--yes", *COSIGN_HTTP, name),
    )
    store, manifest = site.store(name, push=True)
    theirs, ours = site.key(site.theirs), site.key(site.ours)
    (found,), _ = attestations(store, (manifest.digest,), VULNERABILITIES, [theirs.public])
    assert found.statement.predicate == REPORT
    attest(store, manifest, name, VULNERABILITIES, REPORT, ours, now=time.time())
    ask = ("verify-attestation", "--type", "vuln", "--trusted-root", trusted_root, *COSIGN_VERIFY)
    cosign_3.must(*ask, "--key", site.ours.with_suffix(".pub"), name)


def test_an_attestation_is_no_signature(site: Site) -> None:
    name = site.push("team/only-attested")
    store, manifest = site.store(name, push=True)
    attest(store, manifest, name, VULNERABILITIES, REPORT, site.key(site.ours), now=time.time())
    status, text = site.verify(name, site.ours)
    assert status != 0
    assert "is not signed" in text
