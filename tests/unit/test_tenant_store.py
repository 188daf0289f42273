"""Tenants on disk: made whole or not at all, read strictly, each with files of its own."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import StateError, UsageError, VmrunError
from vmrun.model.quantity import MIB
from vmrun.model.tenant import Quota, Tenant, checked_tenant
from vmrun.model.wire import dumps
from vmrun.model.workload import EngineName, ProfileName
from vmrun.run.directories import StateDirectories
from vmrun.tenant.store import TenantStore

QUOTA = Quota(2.0, 512 * MIB, 1 << 30, 4)
ACME = Tenant("acme", 1.5, EngineName.DOCKER, QUOTA, ProfileName.HEALTHCARE)


@pytest.fixture
def store(tmp_path: Path) -> TenantStore:
    return TenantStore(tmp_path / "tenants")


def test_a_tenant_is_read_back_as_it_was_made(store: TenantStore) -> None:
    store.create(ACME)
    store.create(replace(ACME, name="a", floor=None))
    assert store.get("acme") == ACME
    assert [tenant.name for tenant in store.all()] == ["a", "acme"]


def test_nobody_else_may_look(store: TenantStore, tmp_path: Path) -> None:
    store.create(ACME)
    directory = tmp_path / "tenants"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, directory / "acme")]
    assert modes == [0o700, 0o700]
    assert stat.S_IMODE((directory / "acme" / "tenant.json").stat().st_mode) == 0o600


def test_a_name_can_be_had_once(store: TenantStore) -> None:
    store.create(ACME)
    with pytest.raises(StateError, match="there is a tenant 'acme' already"):
        store.create(replace(ACME, engine=EngineName.CRUN))
    assert store.get("acme").engine is EngineName.DOCKER


def test_of_many_at_once_one_gets_the_name(store: TenantStore) -> None:
    made = []

    def create(number: int) -> None:
        try:
            store.create(replace(ACME, created=float(number)))
        except StateError:
            return
        made.append(float(number))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.get("acme").created] == made


def test_one_that_was_never_created_is_an_error_that_says_how(store: TenantStore) -> None:
    with pytest.raises(StateError) as error:
        store.get("acme")
    assert error.value.hint == "create it: vmrun tenant create acme"
    assert store.all() == ()


@pytest.mark.parametrize("name", ["default", "doctor", "trial"])
def test_vmruns_own_names_cannot_be_had(store: TenantStore, name: str) -> None:
    with pytest.raises(StateError, match="that name is vmrun's"):
        store.create(replace(ACME, name=name))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "A", "-a", "a-", "a_b", "a.b", "ä", "a\n", "x" * 64, " a"]
)
def test_a_name_is_one_dns_label_in_lower_case(store: TenantStore, name: str) -> None:
    for attempt in (store.get, store.exists, lambda name: store.create(replace(ACME, name=name))):
        with pytest.raises(UsageError, match="not a tenant's name"):
            attempt(name)


@given(st.text(max_size=70))
def test_no_name_leads_out_of_the_directory(name: str) -> None:
    try:
        good = checked_tenant(name)
    except UsageError:
        return
    assert os.path.normpath(f"/state/{good}") == f"/state/{good}"
    assert "/" not in good


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "other"}, "it is that of 'other'"),
        ({"engine": "podman"}, "no EngineName 'podman'"),
        ({"root": True}, "unknown field 'root'"),
        ({"quota": {"cpus": 1.0, "memory": 1, "disk": 0}}, "guests is missing"),
        ({"quota": {"cpus": 0.0, "memory": 1, "disk": 0, "guests": 1}}, "its quota is none"),
        ({"quota": {"cpus": 1.0, "memory": -1, "disk": 0, "guests": 1}}, "its quota is none"),
        ({"quota": {"cpus": float("nan"), "memory": 1, "disk": 0, "guests": 1}}, "quota is none"),
        ({"quota": {"cpus": 1.0, "memory": "1", "disk": 0, "guests": 1}}, "not a int"),
    ],
)
def test_a_damaged_tenant_is_no_tenant(
    store: TenantStore, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    store.create(ACME)
    path = tmp_path / "tenants" / "acme" / "tenant.json"
    path.write_text(json.dumps(json.loads(dumps(ACME)) | change))
    with pytest.raises(StateError, match=why) as error:
        store.get("acme")
    assert "vmrun tenant rm --force acme" in error.value.hint
    with pytest.raises(StateError):
        store.all()
    assert store.exists("acme")


@given(data=st.binary(max_size=200))
def test_any_bytes_in_its_file_are_an_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("tenants")
    store = TenantStore(directory)
    store.create(ACME)
    (directory / "acme" / "tenant.json").write_bytes(data)
    with pytest.raises(VmrunError):
        store.get("acme")


def test_a_removed_tenant_leaves_nothing(store: TenantStore, tmp_path: Path) -> None:
    store.create(ACME)
    (tmp_path / "tenants" / "acme" / "images").mkdir()
    with store.locked():
        assert store.remove("acme")
    assert os.listdir(tmp_path / "tenants") == [".lock"]
    store.create(ACME)


def test_what_a_killed_command_left_is_swept(store: TenantStore, tmp_path: Path) -> None:
    (tmp_path / "tenants" / ".partial-x").mkdir(parents=True)
    store.create(ACME)
    assert sorted(os.listdir(tmp_path / "tenants")) == [".lock", "acme"]
    assert [tenant.name for tenant in store.all()] == ["acme"]


def test_what_images_bring_is_kept_apart(tmp_path: Path) -> None:
    host = StateDirectories(tmp_path / "guests", tmp_path / "cache", (tmp_path / "bases",))
    acme, other = host.for_tenant("acme"), host.for_tenant("other")
    for name in ("images", "scans", "ledger"):
        places = {getattr(one, name) for one in (host, acme, other)}
        assert places == {
            tmp_path / name,
            tmp_path / "tenants" / "acme" / name,
            tmp_path / "tenants" / "other" / name,
        }
    for name in ("guests", "runs", "journal", "bases", "cache", "volumes", "tenants"):
        assert getattr(acme, name) == getattr(host, name)
    assert host.for_tenant("default") == host
    assert acme.for_tenant("default") == host
