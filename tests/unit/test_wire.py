"""Values of the model as JSON, there and back; whatever else comes is an error, never a guess."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import StateError
from vmrun.model.network import Publish
from vmrun.model.report import Assertion, Phase, Receipt, Removed, Usage
from vmrun.model.run_record import Health, RunRecord, RunState
from vmrun.model.service import HealthCheck, RestartPolicy, RestartWhen, ServiceOptions
from vmrun.model.wire import decode, dumps, loads

RECORD = RunRecord(
    run_id="0123456789ab", name="web", tenant="default", guest="0123456789ab", image="oci:/x",
    image_digest="sha256:00", command="sh", engine="crun", profile="restricted",
    accelerator="tcg", isolated=False, base="sha256:11", state=RunState.RUNNING, created=1.5,
    health=Health.HEALTHY, started=2, exit_status=None, ports=(Publish("127.0.0.1", 8080, 80),),
    labels=(("tier", "front"), ("empty", "")), phases=(Phase("boot", 0.5, 4.0),),
    assertions=(Assertion("qemu", "seccomp", "2", "2", ok=True),), usage=Usage(memory_peak=7),
    receipt=Receipt((Removed("domain", "vmrun-x", gone=True),)),
)  # fmt: skip

texts = st.text(max_size=20)
options = st.builds(
    ServiceOptions,
    restart=st.builds(RestartPolicy, st.sampled_from(RestartWhen), st.integers()),
    health=st.none() | st.builds(HealthCheck, st.lists(texts).map(tuple)),
)


def test_a_record_comes_back_as_it_was() -> None:
    assert loads(RunRecord, dumps(RECORD)) == RECORD
    assert "\n" not in dumps(RECORD)


@given(options)
def test_options_come_back_as_they_were(value: ServiceOptions) -> None:
    assert loads(ServiceOptions, dumps(value)) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_other_json_is_an_error(raw: Any) -> None:
    with pytest.raises(StateError):
        decode(RunRecord, raw)


@given(st.sampled_from(sorted(json.loads(dumps(RECORD)))), json_values)
def test_a_field_of_another_kind_is_an_error_or_a_value(field: str, raw: Any) -> None:
    fields = json.loads(dumps(RECORD)) | {field: raw}
    try:
        found = decode(RunRecord, fields)
    except StateError:
        return
    assert loads(RunRecord, dumps(found)) == found


@given(st.binary(max_size=100))
def test_what_is_no_json_is_an_error(raw: bytes) -> None:
    with pytest.raises(StateError):
        loads(RunRecord, raw)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"state": "sleeping"}, "no RunState 'sleeping'"),
        ({"isolated": 1}, "isolated: not a bool"),
        ({"restarts": True}, "restarts: not a int"),
        ({"restarts": 1.0}, "restarts: not a int"),
        ({"created": "now"}, "created: not a float"),
        ({"created": True}, "created: not a float"),
        ({"labels": {"a": "b"}}, "labels: not a list"),
        ({"labels": [["a"]]}, "1 values, not 2"),
        ({"receipt": {"removed": [{"kind": "x"}]}}, "name is missing"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(StateError, match=r".") as caught:
        decode(RunRecord, json.loads(dumps(RECORD)) | change)
    assert why in caught.value.message


def test_a_missing_field_without_default_is_an_error() -> None:
    fields = json.loads(dumps(RECORD))
    del fields["name"]
    with pytest.raises(StateError, match="name is missing"):
        decode(RunRecord, fields)
    fields = json.loads(dumps(RECORD))
    del fields["log_problem"]
    assert decode(RunRecord, fields) == RECORD


def test_depth_is_no_way_to_crash_it() -> None:
    with pytest.raises(StateError):
        loads(RunRecord, b"[" * 100_000)


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Publish | None


def test_errors_of_an_optional_value_say_where() -> None:
    assert decode(Outer, {"inner": None}) == Outer(None)
    with pytest.raises(StateError, match=r"Outer.inner.host_port: not a int"):
        decode(Outer, {"inner": {"address": "::1", "host_port": "80", "container_port": 1}})
