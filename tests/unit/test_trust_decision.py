"""May this image run? Real keys and signatures in a real layout, against every way to cheat."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.images import TestImage, file, plain_image
from tests.images import image as make_image
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.image.reference import parse_reference
from vmrun.model.digest import Digest
from vmrun.model.errors import Refused, SettingsError, TrustError
from vmrun.model.image import Descriptor, ImageDigests
from vmrun.model.trust import SignatureFormat, Trust
from vmrun.policy.signature_policy import BUILT_IN, parse_policy
from vmrun.policy.trust_rules import TrustRules, parse_rules
from vmrun.trust.decision import Subject, decide, record, revoked
from vmrun.trust.files import TrustLayer
from vmrun.trust.keys import PrivateKey, PublicKey
from vmrun.trust.ledger import Ledger
from vmrun.trust.signatures import Signatures, collect
from vmrun.trust.signing import sign_image

NOW = 1_800_000_000.0
DAY = 24 * 3600.0
NAME = "registry.example.com/prod/app:1"
ALICE, BOB, MALLORY = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
REJECT = {"type": "reject"}
ANYTHING = {"type": "insecureAcceptAnything"}


@dataclass
class Signed:
    """An image in a layout of its own, to which signatures are attached."""

    directory: Path
    built: TestImage = field(default_factory=plain_image)

    def __post_init__(self) -> None:
        self.built.write_layout(self.directory)
        self.store = LayoutArtifacts(self.directory)
        entry = self.built.index_entry()
        self.manifest = Descriptor(entry["mediaType"], Digest.parse(entry["digest"]), entry["size"])
        self.digests = ImageDigests(
            (self.manifest.digest,),
            Digest.of(self.built.config),
            tuple(Digest.of(layer.blob) for layer in self.built.layers),
        )

    def sign(
        self,
        key: PrivateKey = ALICE,
        identity: str = NAME,
        at: float = NOW - DAY,
        formats: Sequence[SignatureFormat] = tuple(SignatureFormat),
    ) -> Signed:
        sign_image(self.store, self.manifest, identity, key, now=at, formats=formats)
        return self

    def subject(self, reference: str = NAME) -> Subject:
        found = collect(self.store, self.digests.lineage)
        return Subject(parse_reference(reference), self.digests, found)


@pytest.fixture
def image(tmp_path: Path) -> Signed:
    return Signed(tmp_path / "image")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def by(*keys: PrivateKey, identity: object = None) -> dict[str, object]:
    """A requirement of a signature by any of the keys."""

    datas = [base64.b64encode(key.public.pem).decode() for key in keys]
    more = {"signedIdentity": identity} if identity else {}
    return {"type": "sigstoreSigned", "keyDatas": datas, **more}


def layer(*requirements: object, rules: str = "", name: str = "policy.json") -> TrustLayer:
    data = json.dumps({"default": list(requirements)}).encode()
    read = parse_rules(f"version = 1\n{rules}".encode(), "trust.toml")
    return TrustLayer(parse_policy(data, name), read, ((name, Digest.of(data)),))


def rules_only(text: str) -> TrustLayer:
    read = parse_rules(f"version = 1\n{text}".encode(), "trust.toml")
    return TrustLayer(None, read, (("trust.toml", Digest.of(text.encode())),))


def accept(subject: Subject, ledger: Ledger, *layers: TrustLayer, now: float = NOW) -> Trust:
    return decide(subject, layers, ledger, now=now)[0]


def refuse(subject: Subject, ledger: Ledger, *layers: TrustLayer, now: float = NOW) -> str:
    """Everything that the user is told."""
    with pytest.raises(Refused) as caught:
        decide(subject, layers, ledger, now=now)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return f"{caught.value.message}\n{caught.value.details}\n{caught.value.hint}"


# --- signatures ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SignatureFormat)
def test_a_signed_image_is_accepted(form: SignatureFormat, image: Signed, ledger: Ledger) -> None:
    policy = layer(by(ALICE))
    trust = accept(image.sign(formats=[form]).subject(), ledger, policy)
    [claim] = trust.claims
    assert (claim.key_id, claim.identity, claim.format) == (ALICE.public.key_id, NAME, form)
    assert claim.digest == image.digests.manifest
    assert claim.signed_at == NOW - DAY
    assert trust.policies == policy.files
    assert not trust.insecure


def test_without_a_policy_nothing_runs(image: Signed, ledger: Ledger) -> None:
    subject = image.sign().subject()
    built_in = TrustLayer(BUILT_IN, TrustRules(), (("built in", Digest.of(b"")),))
    assert "vmrun policy allow" in refuse(subject, ledger, built_in)
    assert "no policy" in refuse(subject, ledger)
    assert "no policy" in refuse(subject, ledger, rules_only(""))


def test_an_unsigned_image(image: Signed, ledger: Ledger) -> None:
    said = refuse(image.subject(), ledger, layer(by(ALICE)))
    for part in ("not signed", NAME, "policy.json", "default", "vmrun image sign"):
        assert part in said
    assert ALICE.public.key_id in said


def test_an_unsigned_image_of_an_archive(image: Signed, ledger: Ledger) -> None:
    said = refuse(image.subject("docker-archive:/srv/app.tar"), ledger, layer(by(ALICE)))
    assert "keeps no signatures" in said


def test_another_key(image: Signed, ledger: Ledger) -> None:
    said = refuse(image.sign(MALLORY).subject(), ledger, layer(by(ALICE)))
    assert "by none of these keys" in said
    assert ALICE.public.key_id in said


def test_a_retagged_image(image: Signed, ledger: Ledger) -> None:
    """cosign's own program accepts this one."""
    subject = image.sign(identity=NAME).subject("registry.example.com/prod/app:latest")
    said = refuse(subject, ledger, layer(by(ALICE)))
    assert NAME in said
    assert "is for" in said


@pytest.mark.parametrize(
    "reference",
    [
        "registry.example.com/test/app:1",
        "registry.example.com/prod/app/more:1",
        "registry.example.com:5000/prod/app:1",
        "other.example.com/prod/app:1",
    ],
)
def test_an_image_from_another_repository(reference: str, image: Signed, ledger: Ledger) -> None:
    assert NAME in refuse(image.sign().subject(reference), ledger, layer(by(ALICE)))


@pytest.mark.parametrize("identity", ["", "app:1", "registry.example.com/prod/app", "prod"])
def test_a_signature_that_names_too_little(identity: str, image: Signed, ledger: Ledger) -> None:
    try:
        image.sign(identity=identity)
    except TrustError:
        pytest.skip("vmrun does not even write such a signature")
    refuse(image.subject(), ledger, layer(by(ALICE)))
    by_digest = f"registry.example.com/prod/app@{image.digests.manifest}"
    refuse(image.subject(by_digest), ledger, layer(by(ALICE)))


def test_an_image_by_digest(image: Signed, ledger: Ledger) -> None:
    image.sign()
    accept(image.subject(f"registry.example.com/prod/app@{image.digests.manifest}"), ledger,
           layer(by(ALICE)))  # fmt: skip
    other = f"registry.example.com/test/app@{image.digests.manifest}"
    refuse(image.subject(other), ledger, layer(by(ALICE)))


def test_the_signature_of_another_image(image: Signed, ledger: Ledger, tmp_path: Path) -> None:
    other = Signed(tmp_path / "other", make_image([file("x", b"other")])).sign()
    stolen = replace(image.subject(), signatures=other.subject().signatures)
    assert "another image" in refuse(stolen, ledger, layer(by(ALICE)))


def test_a_signature_moved_to_another_image(image: Signed, ledger: Ledger, tmp_path: Path) -> None:
    """What it is attached to is where it was found; what it says counts."""
    other = Signed(tmp_path / "other", make_image([file("x", b"other")])).sign()
    moved = tuple(
        replace(found, digest=image.digests.manifest) for found in other.subject().signatures.found
    )
    stolen = replace(image.subject(), signatures=Signatures(moved))
    assert "another image" in refuse(stolen, ledger, layer(by(ALICE)))


def test_a_changed_payload(image: Signed, ledger: Ledger) -> None:
    subject = image.sign(formats=[SignatureFormat.SIMPLE_SIGNING]).subject()
    [found] = subject.signatures.found
    changed = found.payload.replace(b"app:1", b"app:2")
    forged = replace(found, payload=changed, signed=changed)
    subject = replace(subject, signatures=Signatures((forged,)))
    refuse(replace(subject, reference=parse_reference(NAME[:-1] + "2")), ledger, layer(by(ALICE)))


def test_malformed_signatures_are_named(image: Signed, ledger: Ledger) -> None:
    subject = replace(image.subject(), signatures=Signatures((), ("bundle x: not JSON",)))
    assert "bundle x: not JSON" in refuse(subject, ledger, layer(by(ALICE)))


# --- requirements ----------------------------------------------------------------------------


def test_of_several_keys_any_will_do(image: Signed, ledger: Ledger) -> None:
    image.sign(BOB)
    assert {c.key_id for c in accept(image.subject(), ledger, layer(by(ALICE, BOB))).claims} == {
        BOB.public.key_id
    }


def test_all_requirements_of_a_scope_must_be_met(image: Signed, ledger: Ledger) -> None:
    both = layer(by(ALICE), by(BOB))
    image.sign(ALICE)
    refuse(image.subject(), ledger, both)
    image.sign(BOB)
    assert len({c.key_id for c in accept(image.subject(), ledger, both).claims}) == 2


@pytest.mark.parametrize("requirements", [[REJECT, ANYTHING], [ANYTHING, REJECT]])
def test_reject_wins(requirements: list[object], image: Signed, ledger: Ledger) -> None:
    assert "rejected by policy" in refuse(image.sign().subject(), ledger, layer(*requirements))


def test_anything_beside_a_signature_does_not_weaken_it(image: Signed, ledger: Ledger) -> None:
    refuse(image.subject(), ledger, layer(ANYTHING, by(ALICE)))
    assert not accept(image.sign().subject(), ledger, layer(ANYTHING, by(ALICE))).insecure


def test_accepting_anything_is_said_aloud(image: Signed, ledger: Ledger) -> None:
    trust, notes = decide(image.subject(), [layer(ANYTHING)], ledger, now=NOW)
    assert trust.insecure
    assert any("NOT verified" in note for note in notes)


@pytest.mark.parametrize("site_first", [True, False])
def test_every_policy_must_be_satisfied(site_first: bool, image: Signed, ledger: Ledger) -> None:
    """A user can tighten what a site says, and never relax it."""
    for strict in (layer(by(ALICE)), layer(REJECT)):
        layers = [strict, layer(ANYTHING)]
        refuse(image.sign(MALLORY).subject(), ledger, *(layers if site_first else layers[::-1]))
    trust = accept(image.sign(ALICE).subject(), ledger, layer(by(ALICE)), layer(ANYTHING))
    assert not trust.insecure
    assert len(trust.policies) == 2


def test_a_layout_needs_an_identity_that_says_a_name(image: Signed, ledger: Ledger) -> None:
    subject = image.sign().subject("oci:/srv/images/app:demo")
    for kind in ("matchExact", "matchRepoDigestOrExact", "matchRepository"):
        refuse(subject, ledger, layer(by(ALICE, identity={"type": kind})))
    remap = {"type": "remapIdentity", "prefix": "a.b", "signedPrefix": "registry.example.com"}
    refuse(subject, ledger, layer(by(ALICE, identity=remap)))
    exact = {"type": "exactReference", "dockerReference": NAME}
    accept(subject, ledger, layer(by(ALICE, identity=exact)))
    refuse(subject, ledger, layer(by(ALICE, identity={**exact, "dockerReference": NAME + "0"})))
    repository = {"type": "exactRepository", "dockerRepository": NAME[:-2]}
    accept(subject, ledger, layer(by(ALICE, identity=repository)))


def test_a_key_that_cannot_be_read_is_an_error(image: Signed, ledger: Ledger) -> None:
    subject = image.sign().subject()
    absent = {"type": "sigstoreSigned", "keyPath": "/nowhere/a.pub"}
    with pytest.raises(SettingsError, match=r"/nowhere/a\.pub"):
        decide(subject, [layer(absent)], ledger, now=NOW)
    broken = {"type": "sigstoreSigned", "keyData": "UEVN"}
    with pytest.raises(TrustError, match="keyData"):
        decide(subject, [layer(broken)], ledger, now=NOW)


# --- revocation and time ---------------------------------------------------------------------


def revoked_digest(digest: Digest) -> str:
    return f'[[revoked.digests]]\ndigest = "{digest}"\nreason = "it holds a secret"\n'


def revoked_key(key: PublicKey) -> str:
    return f'[[revoked.keys]]\nid = "{key.key_id}"\nreason = "the laptop was stolen"\n'


@pytest.mark.parametrize("part", ["manifest", "index", "config", "layer"])
@pytest.mark.parametrize("where", ["same", "other", "rules only"])
def test_a_revoked_digest_of_any_part(part: str, where: str, image: Signed, ledger: Ledger) -> None:
    index = Digest.of(b"index")
    subject = image.sign().subject()
    digests = replace(subject.digests, lineage=(index, *subject.digests.lineage))
    subject = replace(subject, digests=digests)
    digest = {
        "manifest": digests.manifest,
        "index": index,
        "config": digests.config,
        "layer": digests.layers[0],
    }[part]
    accept(subject, ledger, layer(by(ALICE)))
    text = revoked_digest(digest)
    layers = {
        "same": [layer(ANYTHING, rules=text)],
        "other": [layer(by(ALICE)), layer(ANYTHING, rules=text)],
        "rules only": [layer(by(ALICE)), rules_only(text)],
    }[where]
    said = refuse(subject, ledger, *layers)
    assert "it holds a secret" in said
    assert str(digest) in said


@pytest.mark.parametrize("own", [True, False])
def test_a_revoked_key_is_no_key(own: bool, image: Signed, ledger: Ledger) -> None:
    text = revoked_key(ALICE.public)
    layers = [layer(by(ALICE, BOB), rules=text)] if own else [layer(by(ALICE, BOB)),
                                                              rules_only(text)]  # fmt: skip
    said = refuse(image.sign(ALICE).subject(), ledger, *layers)
    assert "the laptop was stolen" in said
    accept(image.sign(BOB).subject(), ledger, *layers)


def validity(key: PrivateKey, before: str, after: str) -> str:
    return f'[[keys]]\nid = "{key.public.key_id}"\nnot_before = {before}\nnot_after = {after}\n'


# NOW is in January of 2027.
LAST_YEAR = validity(ALICE, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")
NEXT_YEAR = validity(ALICE, "2028-01-01T00:00:00Z", "2029-01-01T00:00:00Z")
THESE_YEARS = validity(ALICE, "2026-01-01T00:00:00Z", "2028-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("rules", "said"), [(LAST_YEAR, "not valid after"), (NEXT_YEAR, "not valid before")]
)
def test_a_key_out_of_its_time(rules: str, said: str, image: Signed, ledger: Ledger) -> None:
    """By this host's clock: what a signature says of its time proves nothing."""
    for signed in (NOW - 200 * DAY, NOW + 400 * DAY):
        image.sign(at=signed)
    assert said in refuse(image.subject(), ledger, layer(by(ALICE), rules=rules))
    # The times of all files must fit.
    both = (layer(by(ALICE), rules=THESE_YEARS), rules_only(rules))
    assert said in refuse(image.subject(), ledger, *both)


def test_a_key_in_its_time(image: Signed, ledger: Ledger) -> None:
    subject = image.sign().subject()
    accept(subject, ledger, layer(by(ALICE), rules=THESE_YEARS))
    end = 1_830_297_600.0  # 2028-01-01
    accept(subject, ledger, layer(by(ALICE), rules=THESE_YEARS), now=end - 1)
    refuse(subject, ledger, layer(by(ALICE), rules=THESE_YEARS), now=end)


def test_what_runs_already_is_compared_with_revocations() -> None:
    digests = ImageDigests((Digest.of(b"a"),), Digest.of(b"b"), (Digest.of(b"c"),))
    assert revoked(digests, [ALICE.public.key_id], [layer(ANYTHING)]) is None
    later = rules_only(revoked_digest(digests.layers[0]))
    assert "it holds a secret" in (revoked(digests, [], [layer(ANYTHING), later]) or "")
    stolen = rules_only(revoked_key(ALICE.public))
    assert "stolen" in (revoked(digests, [ALICE.public.key_id], [stolen]) or "")
    assert revoked(digests, [BOB.public.key_id], [stolen]) is None


# --- thresholds ------------------------------------------------------------------------------

TWO = '[[threshold]]\nscope = "registry.example.com/prod"\nsignatures = 2\n'


def test_two_keys_must_agree(image: Signed, ledger: Ledger) -> None:
    policy = layer(by(ALICE, BOB), rules=TWO)
    for time in (NOW - DAY, NOW - 2 * DAY, NOW - 3 * DAY):
        image.sign(ALICE, at=time)  # one key is one, however often it signs
    image.sign(MALLORY)
    said = refuse(image.subject(), ledger, policy)
    assert "1 of 2" in said
    assert ALICE.public.key_id in said
    image.sign(BOB)
    accept(image.subject(), ledger, policy)


def test_a_revoked_key_does_not_count(image: Signed, ledger: Ledger) -> None:
    policy = layer(by(ALICE, BOB), rules=TWO + revoked_key(BOB.public))
    refuse(image.sign(ALICE).sign(BOB).subject(), ledger, policy)


def test_a_threshold_is_about_its_scope(image: Signed, ledger: Ledger) -> None:
    name = "registry.example.com/test/app:1"
    subject = image.sign(identity=name).subject(name)
    accept(subject, ledger, layer(by(ALICE), rules=TWO))


def test_a_threshold_cannot_be_avoided_by_digest_or_layout(image: Signed, ledger: Ledger) -> None:
    image.sign(ALICE)
    by_digest = f"registry.example.com/prod/app@{image.digests.manifest}"
    assert "1 of 2" in refuse(image.subject(by_digest), ledger, layer(by(ALICE, BOB), rules=TWO))
    tag = TWO.replace("/prod", "/prod/app:1")
    assert "1 of 2" in refuse(image.subject(by_digest), ledger, layer(by(ALICE, BOB), rules=tag))
    exact = by(ALICE, BOB, identity={"type": "exactReference", "dockerReference": NAME})
    assert "1 of 2" in refuse(image.subject("oci:/srv/app"), ledger, layer(exact, rules=TWO))


def test_a_threshold_where_anything_is_accepted_is_not_met(image: Signed, ledger: Ledger) -> None:
    assert "0 of 2" in refuse(image.sign().subject(), ledger, layer(ANYTHING, rules=TWO))


def test_keys_of_a_user_do_not_make_up_a_sites_number(image: Signed, ledger: Ledger) -> None:
    site, user = layer(by(ALICE), rules=TWO), layer(by(MALLORY))
    image.sign(ALICE).sign(MALLORY)
    assert "1 of 2" in refuse(image.subject(), ledger, site, user)


def test_a_threshold_without_a_policy_beside_it(image: Signed, ledger: Ledger) -> None:
    layers = (layer(by(ALICE), by(BOB)), rules_only(TWO))
    refuse(image.sign(ALICE).subject(), ledger, *layers)
    accept(image.sign(BOB).subject(), ledger, *layers)
    assert "1 of 2" in refuse(image.subject(), ledger, layer(by(ALICE)), rules_only(TWO))


# --- the ledger ------------------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path: Path, ledger: Ledger) -> Signed:
    """Another image of the same name, signed a day ago, that was accepted already."""
    newer = Signed(tmp_path / "newer", make_image([file("x", b"newer")])).sign()
    run(newer.subject(), ledger)
    return newer


def run(subject: Subject, ledger: Ledger, *layers: TrustLayer) -> None:
    record(subject, accept(subject, ledger, *(layers or (layer(by(ALICE)),))), ledger, now=NOW)


@pytest.mark.usefixtures("newer")
def test_an_older_image_of_the_same_name(image: Signed, ledger: Ledger) -> None:
    said = refuse(image.sign(at=NOW - 2 * DAY).subject(), ledger, layer(by(ALICE)))
    assert said.startswith("downgrade:")
    assert f"vmrun policy forget {NAME}" in said
    assert ledger.forget(NAME)
    accept(image.subject(), ledger, layer(by(ALICE)))


def test_a_newer_image_and_the_same_again(image: Signed, newer: Signed, ledger: Ledger) -> None:
    run(newer.subject(), ledger)
    run(image.sign(at=NOW).subject(), ledger)
    assert "downgrade" in refuse(newer.subject(), ledger, layer(by(ALICE)))


def test_signing_again_is_how_one_goes_back(image: Signed, newer: Signed, ledger: Ledger) -> None:
    image.sign(at=NOW - 2 * DAY)
    refuse(image.subject(), ledger, layer(by(ALICE)))
    image.sign(at=NOW)
    run(image.subject(), ledger)
    refuse(newer.subject(), ledger, layer(by(ALICE)))


@pytest.mark.usefixtures("newer")
def test_a_signature_without_time_is_not_newer(image: Signed, ledger: Ledger) -> None:
    subject = without_time(image.sign(at=NOW))
    assert "at no time" in refuse(subject, ledger, layer(by(ALICE)))


def test_a_signature_without_time_leaves_no_trace(image: Signed, ledger: Ledger) -> None:
    run(without_time(image.sign(at=NOW)), ledger)
    assert ledger.entries() == ()


@pytest.mark.parametrize("ahead", [2 * DAY, 1e6 * DAY, 1e30])
def test_a_time_that_is_yet_to_come_is_none(ahead: float, image: Signed, ledger: Ledger) -> None:
    """It would lock out every image that is signed before then."""
    at = signed_at(image, NOW + ahead)
    run(at, ledger)
    assert ledger.entries() == ()


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("ahead", [2 * DAY, 1e30])
def test_a_time_that_is_yet_to_come_is_not_newer(
    ahead: float, image: Signed, ledger: Ledger
) -> None:
    assert "downgrade" in refuse(signed_at(image, NOW + ahead), ledger, layer(by(ALICE)))


def test_a_clock_that_is_a_little_ahead(image: Signed, newer: Signed, ledger: Ledger) -> None:
    run(image.sign(at=NOW + 3600).subject(), ledger)


@pytest.mark.usefixtures("newer")
def test_names_have_histories_of_their_own(image: Signed, ledger: Ledger) -> None:
    name = "registry.example.com/prod/app:2"
    subject = image.sign(identity=name, at=NOW - 9 * DAY).subject(name)
    accept(subject, ledger, layer(by(ALICE)))


@pytest.mark.usefixtures("newer")
def test_a_digest_cannot_be_moved_back(image: Signed, ledger: Ledger) -> None:
    image.sign(at=NOW - 9 * DAY)
    by_digest = f"registry.example.com/prod/app@{image.digests.manifest}"
    run(image.subject(by_digest), ledger)
    assert [entry.name for entry in ledger.entries()] == [NAME]


def test_the_same_image_under_an_older_signature(newer: Signed, ledger: Ledger) -> None:
    """It is no other image, whichever of its signatures a registry gives."""
    for subject in (signed_at(newer, NOW - 9 * DAY), without_time(newer)):
        accept(subject, ledger, layer(by(ALICE)))


@pytest.mark.usefixtures("newer")
def test_a_layout_is_no_way_round(image: Signed, ledger: Ledger) -> None:
    exact = by(ALICE, identity={"type": "exactReference", "dockerReference": NAME})
    subject = image.sign(at=NOW - 9 * DAY).subject("oci:/srv/app")
    assert "downgrade" in refuse(subject, ledger, layer(exact))


@pytest.mark.usefixtures("newer")
def test_a_warning_and_no_ledger(image: Signed, ledger: Ledger) -> None:
    subject = image.sign(at=NOW - 9 * DAY).subject()
    warn, off = '[ledger]\ndowngrade = "warn"\n', '[ledger]\ndowngrade = "off"\n'
    _, notes = decide(subject, [layer(by(ALICE), rules=warn)], ledger, now=NOW)
    assert any(note.startswith("downgrade:") for note in notes)
    _, notes = decide(subject, [layer(by(ALICE), rules=off)], ledger, now=NOW)
    assert notes == ()
    # The strictest file counts.
    refuse(subject, ledger, layer(by(ALICE), rules=off), layer(ANYTHING))


def test_a_refused_image_leaves_no_trace(image: Signed, ledger: Ledger) -> None:
    refuse(image.sign(MALLORY).subject(), ledger, layer(by(ALICE)))
    accept(image.sign(ALICE).subject(), ledger, layer(by(ALICE)))  # looked at, not run
    assert ledger.entries() == ()


def without_time(image: Signed) -> Subject:
    """The image with a signature as cosign 2 makes it."""
    return _resigned(image, None)


def signed_at(image: Signed, at: float) -> Subject:
    return _resigned(image, int(at))


def _resigned(image: Signed, at: int | None) -> Subject:
    found = image.sign(formats=[SignatureFormat.SIMPLE_SIGNING]).subject()
    stored = found.signatures.found[0]
    payload = json.loads(stored.payload)
    payload["optional"].pop("timestamp")
    if at is not None:
        payload["optional"]["timestamp"] = at
    data = json.dumps(payload).encode()
    again = replace(stored, payload=data, signed=data, signatures=(ALICE.sign(data),))
    return replace(found, signatures=Signatures((again,)))
