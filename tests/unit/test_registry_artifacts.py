"""Signatures and other referrers in a registry: the API, the fallback tag, and both real."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.images import OCI_INDEX, OCI_MANIFEST, descriptor, dumps, plain_image, sha256
from tests.lying_registry import Handler, LyingRegistry, lying_registry, status
from tests.registry import RealRegistry
from vmrun.image.artifacts import EMPTY_DATA, EMPTY_TYPE, ArtifactStore, Referrer
from vmrun.image.reference import parse_reference
from vmrun.image.registry.artifacts import RegistryArtifacts, fallback_tag, open_artifacts
from vmrun.image.registry.options import RegistryOptions
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError

KIND = "application/vnd.example.signature"


@pytest.fixture(autouse=True)
def settling_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.image.registry.artifacts._SETTLE", 0.2)


@pytest.fixture
def liar() -> Iterator[LyingRegistry]:
    with lying_registry() as registry:
        registry.hold(plain_image())
        yield registry


@pytest.fixture
def artifacts(liar: LyingRegistry, tmp_path: Path) -> RegistryArtifacts:
    (tmp_path / "config.json").write_text("{}")
    options = RegistryOptions(plain_http=True, auth_file=tmp_path / "config.json")
    return open_artifacts(parse_reference(liar.reference), options, push=True)


def about(subject: Digest, text: str, **more: Any) -> bytes:
    """A manifest whose subject is ``subject``."""
    return dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": KIND,
            "config": descriptor(EMPTY_TYPE, EMPTY_DATA),
            "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 2},
            "annotations": {"text": text},
            **more,
        }
    )


def texts(found: tuple[Referrer, ...]) -> list[str]:
    return [referrer.annotations["text"] for referrer in found]


def put(store: ArtifactStore, subject: Digest, text: str) -> Digest:
    store.put_blob(EMPTY_TYPE, EMPTY_DATA)
    return store.put_referrer(subject, OCI_MANIFEST, about(subject, text)).digest


SUBJECT = Digest.of(b"subject")


# --- a real registry without the API ---------------------------------------------------------


def test_the_fallback_tag_of_a_real_registry(registry: RealRegistry) -> None:
    reference = parse_reference(f"{registry.host}/artifacts/app:1")
    store = open_artifacts(reference, registry.options, push=True)
    assert store.referrers(SUBJECT) == ()
    assert store.manifest(fallback_tag(SUBJECT)) is None
    digests = [put(store, SUBJECT, text) for text in ("one", "two", "one")]
    assert digests[0] == digests[2]
    found = open_artifacts(reference, registry.options).referrers(SUBJECT)
    assert texts(found) == ["one", "two"]
    assert {referrer.artifact_type for referrer in found} == {KIND}
    for referrer in found:
        stored = store.manifest(referrer.descriptor.digest)
        assert stored is not None
        assert stored.descriptor == referrer.descriptor
    index = store.manifest(f"sha256-{SUBJECT.hex}")
    assert index is not None
    assert index.descriptor.media_type == OCI_INDEX
    assert store.blob(store.put_blob("a/b", b"hello"), 100) == b"hello"
    assert store.referrers(Digest.of(b"else")) == ()


def test_several_signers_at_once(registry: RealRegistry) -> None:
    """HTTP cannot add to an index in one go; whoever is overwritten notices and adds again."""
    reference = parse_reference(f"{registry.host}/artifacts/many:1")
    start = threading.Barrier(3)

    def sign(text: str) -> Digest:
        store = open_artifacts(reference, registry.options, push=True)
        store.put_blob(EMPTY_TYPE, EMPTY_DATA)
        start.wait()
        return put(store, SUBJECT, text)

    with ThreadPoolExecutor(3) as executor:
        signed = list(executor.map(sign, ["one", "two", "three"]))
    listed = open_artifacts(reference, registry.options).referrers(SUBJECT)
    assert {referrer.descriptor.digest for referrer in listed} == set(signed)
    assert len(listed) == 3


# --- registries with the API ---------------------------------------------------------------


def test_a_registry_that_lists_by_itself(liar: LyingRegistry, artifacts: RegistryArtifacts) -> None:
    liar.lie("PUT", "/manifests/", status(201, OCI_Subject=str(SUBJECT)))
    put(artifacts, SUBJECT, "one")
    assert len(liar.asked("PUT", "/manifests/")) == 1


@pytest.mark.parametrize("said", ["", str(Digest.of(b"else"))])
def test_without_its_word_the_fallback_tag_is_kept(
    said: str, liar: LyingRegistry, artifacts: RegistryArtifacts
) -> None:
    def take(handler: Handler) -> None:
        name = handler.path.rpartition("/")[2]
        liar.hold_manifest(handler.body, handler.headers["Content-Type"], name)
        handler.send(201, OCI_Subject=said)

    liar.lie("PUT", "/manifests/", take)
    put(artifacts, SUBJECT, "one")
    assert json.loads(liar.manifests[fallback_tag(SUBJECT)][1])["manifests"]


def test_the_api_goes_before_the_tag(liar: LyingRegistry, artifacts: RegistryArtifacts) -> None:
    put(artifacts, SUBJECT, "tagged")
    assert texts(artifacts.referrers(SUBJECT)) == ["tagged"]
    entry = {**descriptor(OCI_MANIFEST, b"x"), "annotations": {"text": "listed"}}
    page = dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    liar.lie("GET", "/referrers/", status(200, page))
    assert texts(artifacts.referrers(SUBJECT)) == ["listed"]


def test_all_pages_count(liar: LyingRegistry, artifacts: RegistryArtifacts) -> None:
    def page(text: str) -> bytes:
        entry = {**descriptor(OCI_MANIFEST, text.encode()), "annotations": {"text": text}}
        return dumps({"schemaVersion": 2, "manifests": [entry]})

    liar.lie("GET", "/referrers/", status(200, page("two")))
    link = f'</v2/team/app/referrers/{SUBJECT}?last=1>; rel="next"'
    liar.lie("GET", f"/referrers/{SUBJECT}$", status(200, page("one"), Link=link))
    assert texts(artifacts.referrers(SUBJECT)) == ["one", "two"]


# --- writing is checked ----------------------------------------------------------------------


def test_an_addition_that_somebody_overwrote_is_repeated(
    liar: LyingRegistry, artifacts: RegistryArtifacts
) -> None:
    tag = fallback_tag(SUBJECT)
    entry = {**descriptor(OCI_MANIFEST, b"x"), "annotations": {"text": "theirs"}}
    theirs = dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    puts = []

    def overwrite(handler: Handler) -> None:
        puts.append(handler.body)
        body = theirs if len(puts) == 1 else handler.body
        liar.hold_manifest(body, OCI_INDEX, tag)
        handler.send(201)

    liar.lie("PUT", f"/manifests/{tag}", overwrite)
    put(artifacts, SUBJECT, "ours")
    assert texts(artifacts.referrers(SUBJECT)) == ["theirs", "ours"]


def test_an_addition_that_never_stays_is_an_error(
    liar: LyingRegistry, artifacts: RegistryArtifacts
) -> None:
    liar.lie("PUT", f"/manifests/{fallback_tag(SUBJECT)}", status(201))
    with pytest.raises(ImageError, match="keeps changing"):
        put(artifacts, SUBJECT, "ours")


def test_a_tag_that_holds_something_else_is_not_overwritten(
    liar: LyingRegistry, artifacts: RegistryArtifacts
) -> None:
    liar.hold(plain_image(), tag=fallback_tag(SUBJECT))
    with pytest.raises(ImageError):
        put(artifacts, SUBJECT, "ours")
    assert liar.manifests[fallback_tag(SUBJECT)][1] == plain_image().manifest


def test_a_registry_that_stores_something_else(
    liar: LyingRegistry, artifacts: RegistryArtifacts
) -> None:
    liar.lie("PUT", "/manifests/", status(201, Docker_Content_Digest=sha256(b"else")))
    with pytest.raises(ImageError, match="stored"):
        artifacts.put_manifest(OCI_MANIFEST, about(SUBJECT, "x"), "tag")


def test_open_artifacts_is_for_registries(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not in a registry"):
        open_artifacts(parse_reference(f"oci:{tmp_path}"), RegistryOptions())
