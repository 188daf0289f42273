"""Only verified images run: a real registry, real signatures, real guests, and what is refused.

A refusal must leave nothing: no guest, no directory, and no entry that says that one was made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from company import Company, found_company
from registry import tamper

from tests.conftest import REPOSITORY, Result, Vmrun, leftovers

BUILD = REPOSITORY / "images" / "workloads" / "build.py"


@dataclass(frozen=True)
class Firm:
    """A company, and vmrun told of it."""

    company: Company
    call: Vmrun
    image: str
    vulnerable: str

    def vmrun(self, *words: str, **env: str) -> Result:
        return self.call(*words, env={**self.company.environment, **env})

    def publish(self, repository: str, source: str = "") -> str:
        return self.company.publish(source or self.image, repository)

    def push(self, repository: str) -> str:
        name = self.company.name(repository)
        self.company.do("image", "push", "--quiet", self.image, name)
        return name

    def rules(self, tmp_path: Path, text: str) -> str:
        path = tmp_path / "rules.toml"
        path.write_text(f"version = 1\n{text}")
        return str(path)

    def key_id(self) -> str:
        public = self.company.key.with_suffix(".pub")
        return self.company.do("key", "show", str(public)).split()[0]

    def starts(self, name: str) -> list[dict[str, Any]]:
        entries = json.loads(self.vmrun("audit", "show", "--event", "run.start", "--json").out)
        return [entry for entry in entries if entry["fields"]["reference"] == name]

    def refused(self, name: str, *words: str, status: int = 123, **env: str) -> str:
        """Run ``name``, which must fail with ``status`` and leave nothing; what was said."""
        done = self.vmrun("run", *words, name, "--", "true", **env)
        assert done.status == status, done.err
        assert leftovers() == []
        assert self.starts(name) == []
        return done.err


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    with found_company(tmp_path_factory.mktemp("company")) as found:
        yield found


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for name in ("busybox", "vulnerable"):
        out = tmp_path_factory.mktemp(name) / "layout"
        subprocess.run([sys.executable, str(BUILD), name, str(out)], check=True, timeout=300)
        found[name] = f"oci:{out}:demo"
    return found


@pytest.fixture
def firm(company: Company, layouts: dict[str, str], vmrun: Vmrun) -> Firm:
    return Firm(company, vmrun, layouts["busybox"], layouts["vulnerable"])


@pytest.mark.guest
def test_what_was_signed_and_scanned_is_what_runs(firm: Firm) -> None:
    name = firm.publish("demo/good:1")
    done = firm.vmrun("run", name, "--", "echo", "ran")
    assert (done.status, done.out) == (0, "ran\n"), done.err
    report = done.report
    assert report["image_digest"] == report["lineage"][-1]
    assert {claim["identity"] for claim in report["trust"]["claims"]} == {name}
    assert {claim["key_id"] for claim in report["trust"]["claims"]} == {firm.key_id()}
    assert report["trust"]["insecure"] is False
    assert report["health"]["verdict"] == "PASS"
    assert report["health"]["scan"]["digest"] == report["image_digest"]
    assert f"verified {name}" in done.err
    assert "PASS" in done.err
    started = firm.starts(name)
    assert [entry["fields"]["digest"] for entry in started] == [report["image_digest"]]
    assert started[0]["fields"]["keys"] == firm.key_id()
    assert firm.vmrun("audit", "verify").status == 0
    listed = json.loads(firm.vmrun("image", "ls", "--json").out)
    record = next(entry for entry in listed if entry["digest"] == report["image_digest"])
    assert record["pushed"]["account"] == "demo"
    assert record["checkup"]["verdict"] == "PASS"
    assert record["runs"] >= 1


def test_an_unsigned_image(firm: Firm) -> None:
    name = firm.push("demo/unsigned:1")
    assert "is not signed" in firm.refused(name)


def test_a_retagged_image(firm: Firm) -> None:
    """The signature is found under the digest, and is good, and is for another name."""
    firm.publish("demo/retagged:1.0")
    name = firm.push("demo/retagged:2.0")
    assert "demo/retagged:1.0" in firm.refused(name)


def test_an_image_of_another_repository(firm: Firm) -> None:
    """Its signature copied along, as a registry's mirror does."""
    firm.publish("demo/origin:1")
    name = firm.push("demo/elsewhere:1")
    digest = json.loads(firm.company.do("image", "push", "--json", firm.image, name))["digest"]
    origin, elsewhere = (
        firm.company.registry.storage / "docker/registry/v2/repositories/demo" / repository
        for repository in ("origin", "elsewhere")
    )
    tag = f"sha256-{digest.removeprefix('sha256:')}.sig"
    for below in (f"_manifests/tags/{tag}", "_manifests/revisions", "_layers"):
        shutil.copytree(origin / below, elsewhere / below, dirs_exist_ok=True)
    assert "demo/origin:1" in firm.refused(name)


def test_a_vulnerable_image(firm: Firm) -> None:
    name = firm.publish("demo/vulnerable:1", firm.vulnerable)
    said = firm.refused(name)
    assert "not healthy: FAIL" in said
    assert "PYSEC-2018-28" in said


def test_an_exception_lets_it_run_until_it_expires(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/excused:1", firm.vulnerable)
    text = (
        '[scan]\nmax_db_age = "36500d"\n[[scan.exceptions]]\nid = "CVE-2018-18074"\n'
        'reason = "nothing here follows redirects"\nexpires = {}\n'
    )
    for expires, status in (("2999-01-01T00:00:00Z", 0), ("2020-01-01T00:00:00Z", 1)):
        rules = firm.rules(tmp_path, text.format(expires))
        done = firm.vmrun("plan", "--trust-rules", rules, name, "--", "true")
        assert done.status == status, done.err
    assert "expired" in done.err


def test_a_bill_of_health_from_elsewhere(firm: Firm, tmp_path: Path) -> None:
    """Signed in CI, judged here, where there are no advisories; one by another key is none."""
    name = firm.publish("demo/attested:1", firm.vulnerable)
    scan = firm.vmrun("image", "scan", "--key", str(firm.company.key), name)
    assert scan.status == 1
    (tmp_path / "nothing").mkdir()
    text = '[scan]\nmax_db_age = "36500d"\nattested_by = ["{}"]\n'
    for key_id, expected in (
        (firm.key_id(), "FAIL"),
        ("sha256:" + "0" * 64, "NOT-SCANNED"),
    ):
        rules = firm.rules(tmp_path, text.format(key_id))
        words = ("--trust-rules", rules, "--advisories", str(tmp_path / "nothing"))
        state = str(tmp_path / key_id[7:15])
        done = firm.vmrun("plan", *words, name, "--", "true", VMRUN_STATE_DIR=state)
        assert done.status == 1
        assert f"not healthy: {expected}" in done.err
        assert ("PYSEC-2018-28" in done.err) == (expected == "FAIL")


@pytest.mark.parametrize("scope", ["demo", "demo/listed:1"])
def test_a_catalogue_says_what_a_name_means_now(firm: Firm, tmp_path: Path, scope: str) -> None:
    """Signed, healthy, and not (or not any more) what the catalogue names."""
    name = firm.publish("demo/listed:1")
    folder, env = tmp_path / "catalogue", {"VMRUN_CATALOGUE_PASSPHRASE": "catalogue"}
    assert firm.vmrun("catalogue", "init", str(folder), **env).status == 0
    assert firm.vmrun("catalogue", "add", str(folder), name, **env).status == 0
    rules = firm.rules(
        tmp_path,
        f'[[catalogue]]\nname = "c"\nsource = "{folder}"\nroot = "{folder}/1.root.json"\n'
        f'scopes = ["{firm.company.name(scope)}"]\n',
    )
    words = ("--trust-rules", rules)
    good = firm.vmrun("plan", *words, name, "--", "true")
    assert good.status == 0, good.err
    assert "catalogue" in good.err
    firm.publish("demo/listed:1", firm.vulnerable)
    assert "names sha256:" in firm.refused(name, *words)
    firm.publish("demo/listed:1")
    assert firm.vmrun("catalogue", "remove", str(folder), name, **env).status == 0
    assert "catalogue" in firm.refused(name, *words)


def test_a_revoked_key(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/revoked-key:1")
    rules = firm.rules(
        tmp_path, f'[[revoked.keys]]\nid = "{firm.key_id()}"\nreason = "stolen laptop"\n'
    )
    assert "stolen laptop" in firm.refused(name, "--trust-rules", rules)


def test_a_revoked_digest(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/revoked-digest:1")
    digest = json.loads(firm.company.do("image", "verify", "--json", name))["digests"]["lineage"][
        -1
    ]
    rules = firm.rules(
        tmp_path, f'[[revoked.digests]]\ndigest = "{digest}"\nreason = "bad build"\n'
    )
    assert "bad build" in firm.refused(name, "--trust-rules", rules)


def test_a_key_out_of_its_time(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/expired-key:1")
    for when in ("not_after = 2020-01-01T00:00:00Z", "not_before = 2999-01-01T00:00:00Z"):
        rules = firm.rules(tmp_path, f'[[keys]]\nid = "{firm.key_id()}"\n{when}\n')
        assert "is not valid" in firm.refused(name, "--trust-rules", rules)


def test_another_key(firm: Firm, tmp_path: Path) -> None:
    name = firm.push("demo/wrong-key:1")
    firm.company.do("key", "generate", "--out", str(tmp_path / "other"))
    firm.company.do("image", "sign", "--key", str(tmp_path / "other.key"), name)
    assert "no signature satisfies" in firm.refused(name)


def test_too_few_keys(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/threshold:1")
    firm.company.do("image", "sign", "--key", str(firm.company.key), name)
    scope = firm.company.name("demo")
    rules = firm.rules(tmp_path, f'[[threshold]]\nscope = "{scope}"\nsignatures = 2\n')
    assert "1 of 2" in firm.refused(name, "--trust-rules", rules)


def test_an_older_image_under_the_same_name(firm: Firm) -> None:
    """Both are signed for that name; the older one is put back after the newer one has run."""
    name = firm.publish("demo/put-back:1", firm.vulnerable)
    older = firm.vmrun("image", "verify", name)
    assert older.status == 0, older.err
    time.sleep(1.1)  # signatures tell whole seconds
    firm.publish("demo/put-back:1")
    done = firm.vmrun("run", "--timeout", "1ms", name, "--", "true")
    assert done.report["trust"]["claims"], done.err
    firm.company.do("image", "push", "--quiet", firm.vulnerable, name)
    refused = firm.vmrun("run", name, "--", "true")
    assert refused.status == 123
    assert "downgrade" in refused.err
    assert firm.vmrun("policy", "forget", name).status == 0
    assert "downgrade" not in firm.vmrun("plan", name, "--", "true").err


def test_bytes_that_were_changed_in_the_registry(firm: Firm, tmp_path: Path) -> None:
    """A layer and a manifest; the store that has the good bytes must not hide it."""
    state = str(tmp_path / "state")
    name = firm.publish("demo/tampered:1")
    layout = Path(firm.image.split(":")[1])
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    document = json.loads((layout / "blobs" / manifest.replace(":", "/")).read_text())
    for digest in (document["layers"][0]["digest"], manifest):
        tamper(firm.company.registry, digest)
        try:
            done = firm.vmrun("plan", name, "--", "true", VMRUN_STATE_DIR=state)
            assert done.status == 1
            assert digest in done.err
        finally:
            tamper(firm.company.registry, digest)
    assert not list(Path(state).rglob(".partial*"))


def test_nothing_is_verified_without_a_word(firm: Firm, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    name = firm.push("demo/anything:1")
    done = firm.vmrun("plan", "--policy", str(policy), name, "--", "true")
    assert done.status == 0
    assert "NOT verified" in done.err


def test_without_a_policy_nothing_runs(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/no-policy:1")
    environment = {"VMRUN_POLICY": "", "XDG_CONFIG_HOME": str(tmp_path)}
    assert "rejected" in firm.refused(name, **environment)


def test_a_wrong_password_is_not_an_unsigned_image(firm: Firm, tmp_path: Path) -> None:
    name = firm.publish("demo/no-access:1")
    (tmp_path / "config.json").write_text("{}")
    said = firm.refused(name, "--authfile", str(tmp_path / "config.json"), status=125)
    assert "refuses us (status 401)" in said
    assert "docker login" in said


@pytest.mark.guest
def test_what_runs_is_found_when_it_is_revoked(
    firm: Firm, tmp_path: Path, vmrun_program: list[str]
) -> None:
    name = firm.publish("demo/running:1")
    with subprocess.Popen(
        [*vmrun_program, "run", "--name", "patient", name, "--", "sleep", "100"],
        env={**os.environ, **firm.company.environment},
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not firm.starts(name) and time.monotonic() < deadline:
                time.sleep(0.5)
            assert firm.vmrun("audit", "running").status == 0
            rules = firm.rules(
                tmp_path, f'[[revoked.keys]]\nid = "{firm.key_id()}"\nreason = "stolen"\n'
            )
            done = firm.vmrun("audit", "running", "--trust-rules", rules, "--json")
            assert done.status == 1
            found = [guest for guest in json.loads(done.out) if guest["name"] == "patient"]
            assert "stolen" in found[0]["revoked"]
            removal = firm.vmrun("image", "rm", found[0]["image_digest"])
            assert removal.status == 1
            assert "patient" in removal.err
        finally:
            process.terminate()
            process.wait(timeout=60)
    assert leftovers() == []
