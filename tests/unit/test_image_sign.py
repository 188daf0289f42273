"""``vmrun image sign`` on OCI layouts; registries are in tests/e2e/test_signature_peers.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.images import plain_image
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.model.digest import Digest
from vmrun.trust.keys import PrivateKey
from vmrun.trust.signatures import Checked, check, collect

NAME = "registry.example.com/team/app:1"
PASSPHRASE = "secret"
KEY = PrivateKey.generate()
Sign = Callable[..., Result]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "site.key"
    path.write_bytes(KEY.encrypted_pem(PASSPHRASE.encode()))
    return path


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return plain_image().write_layout(tmp_path / "layout")


@pytest.fixture
def sign(vmrun: Callable[..., Result], key_file: Path) -> Sign:
    def call(*arguments: str, key: Path = key_file, password: str = PASSPHRASE) -> Result:
        environment = {**os.environ, "COSIGN_PASSWORD": password}
        environment.pop("VMRUN_KEY_PASSWORD", None)
        return vmrun("image", "sign", "--key", str(key), *arguments, env=environment)

    return call


def claims(layout: Path, digest: str) -> Checked:
    lineage = (Digest.parse(digest),)
    return check(collect(LayoutArtifacts(layout), lineage), [KEY.public], lineage)


@pytest.mark.parametrize(
    ("form", "formats"),
    [("simple", ["simple-signing"]), ("bundle", ["bundle"]), (None, ["simple-signing", "bundle"])],
)
def test_the_digest_is_signed_under_the_name_that_is_given(
    sign: Sign, layout: Path, form: str | None, formats: list[str]
) -> None:
    chosen = ["--format", form] if form else []
    done = sign(f"oci:{layout}:demo", "--identity", NAME, *chosen, "-a", "team=payments", "--json")
    assert done.status == 0, done.err
    signed = json.loads(done.out)
    assert signed["identity"] == NAME
    assert signed["key_id"] == KEY.public.key_id
    (digest,) = signed["digests"]
    found = claims(layout, digest)
    assert [claim.format.value for claim in found.claims] == formats
    assert {claim.identity for claim in found.claims} == {NAME}
    assert found.rejections == ()


def test_what_was_signed_is_said(sign: Sign, layout: Path) -> None:
    done = sign(f"oci:{layout}:demo", "--identity", NAME)
    name, _, digest = done.out.strip().partition("@")
    assert name == NAME
    assert claims(layout, digest).claims
    assert KEY.public.key_id in done.err


def test_a_layout_whose_tag_is_a_full_name_needs_no_other(sign: Sign, tmp_path: Path) -> None:
    layout = plain_image(tag=NAME).write_layout(tmp_path / "layout")
    done = sign(f"oci:{layout}:{NAME}")
    assert done.status == 0, done.err
    assert done.out.startswith(f"{NAME}@sha256:")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no name to sign"),
        (["--identity", "app"], "no full name"),
        (["--identity", "registry.example.com/team/app"], "no full name"),
        (["--identity", "REGISTRY/../app:1"], "no full name"),
        (["--identity", NAME, "-a", "novalue"], "not KEY=VALUE"),
        (["--identity", NAME, "-a", "creator=me"], "vmrun's own"),
        (["--identity", NAME, "-a", "note=a\nb"], "control characters"),
    ],
)
def test_nothing_is_signed_by_mistake(
    sign: Sign, layout: Path, options: list[str], said: str
) -> None:
    before = (layout / "index.json").read_bytes()
    done = sign(f"oci:{layout}:demo", *options)
    assert done.status in (1, 2)
    assert said in done.err
    assert "Traceback" not in done.err
    assert (layout / "index.json").read_bytes() == before


def test_a_wrong_passphrase_or_no_key_signs_nothing(
    sign: Sign, layout: Path, tmp_path: Path
) -> None:
    wrong = sign(f"oci:{layout}:demo", "--identity", NAME, password="wrong")
    assert wrong.status == 1
    assert "wrong passphrase" in wrong.err
    (tmp_path / "public.key").write_bytes(KEY.public.pem)
    for key in (tmp_path / "absent.key", tmp_path, tmp_path / "public.key"):
        refused = sign(f"oci:{layout}:demo", "--identity", NAME, key=key)
        assert refused.status in (1, 2)
        assert str(key) in refused.err


def test_damaged_images_are_not_signed(sign: Sign, tmp_path: Path) -> None:
    """Who signs vouches for what can be run."""
    image = plain_image()
    layout = image.write_layout(tmp_path / "layout")
    layer = layout / "blobs" / "sha256" / Digest.of(image.layers[0].blob).hex
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    done = sign(f"oci:{layout}:demo", "--identity", NAME)
    assert done.status == 1
    assert json.loads((layout / "index.json").read_bytes()) == json.loads(image.index)


def test_archives_keep_no_signatures(sign: Sign, tmp_path: Path) -> None:
    archive = plain_image().write_oci_archive(tmp_path / "image.tar")
    done = sign(f"oci-archive:{archive}:demo", "--identity", NAME)
    assert done.status == 2
    assert "keeps no signatures" in done.err


def test_the_layout_is_still_the_image_it_was(
    sign: Sign, vmrun: Callable[..., Result], layout: Path
) -> None:
    """Signatures are no images: the only image of a layout stays the only one."""
    digest = sign(f"oci:{layout}:demo", "--identity", NAME).out.strip().partition("@")[2]
    public = layout.parent / "site.pub"
    public.write_bytes(KEY.public.pem)
    for reference in (f"oci:{layout}", f"oci:{layout}:demo"):
        done = vmrun(
            "image", "verify", "--key", str(public), "--identity", NAME, "--json", reference
        )
        assert done.status == 0, done.err
        assert json.loads(done.out)["digests"]["lineage"] == [digest]
