"""``vmrun audit``, what is remembered of runs, and what runs now against what is revoked by now."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.images import plain_image
from tests.unit.test_state import directories, held_by_child
from vmrun.cli.main import make_app
from vmrun.image.fetch import fetch
from vmrun.image.records import ImageRecords
from vmrun.image.reference import parse_reference
from vmrun.journal.entry import Entry
from vmrun.journal.journal import Journal
from vmrun.model.digest import Digest
from vmrun.model.errors import StateError, UsageError, VmrunError
from vmrun.model.image import Image, Reference, Transport
from vmrun.model.record import SeenAs
from vmrun.model.report import Receipt, Report, Usage
from vmrun.model.trust import Claim, SignatureFormat, Trust, TrustFiles
from vmrun.run import audit
from vmrun.run.directories import StateDirectories
from vmrun.run.remember import Memory
from vmrun.run.state import alive
from vmrun.trust.ledger import Ledger, LedgerEntry

__all__ = ["directories"]

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
KEY = "sha256:" + "ab" * 32
RUN = "0123456789ab"
Call = Callable[..., str]


@pytest.fixture
def call(
    directories: StateDirectories,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    monkeypatch.setenv("VMRUN_STATE_DIR", str(directories.guests.parent))

    def run(*words: str) -> str:
        make_app()(list(words), standalone_mode=False)
        captured = capsys.readouterr()
        run.err = captured.err  # type: ignore[attr-defined]
        return captured.out

    return run


@pytest.fixture
def image(tmp_path: Path) -> Image:
    layout = plain_image().write_layout(tmp_path / "layout")
    return fetch(parse_reference(f"oci:{layout}:demo"), tmp_path / "fetched")


def report(**more: Any) -> Report:
    fields: dict[str, Any] = dict.fromkeys(Report.__dataclass_fields__, "")
    fields |= {
        "run_id": RUN,
        "exit_status": 0,
        "phases": (),
        "assertions": (),
        "usage": Usage(),
        "receipt": Receipt(()),
    }
    return Report(**(fields | more))


# --- show, verify, export ------------------------------------------------------------------------


@pytest.fixture
def journal(directories: StateDirectories) -> Journal:
    journal = Journal(directories.journal)
    journal.append("image.pull", {"digest": str(ONE)})
    journal.append("run.start", {"digest": str(TWO), "keys": "a b", "empty": ""})
    journal.append("run.refused", {"digest": str(ONE), "error": "x\n4 forged\x1b[31m \udcff"})
    return journal


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], [1, 2, 3]),
        (["--event", "run.start"], [2]),
        (["--digest", str(ONE)], [1, 3]),
        (["--digest", ONE.hex[:6]], [1, 3]),
        (["-n", "1"], [3]),
        (["--digest", str(ONE), "-n", "1"], [3]),
        (["--since", "1h"], [1, 2, 3]),
        (["--since", "2999-01-01T00:00:00Z"], []),
        (["--since", "2000-01-01"], [1, 2, 3]),
    ],
)
def test_show(call: Call, journal: Journal, words: list[str], found: list[int]) -> None:
    shown = json.loads(call("audit", "show", "--json", *words))
    assert [entry["seq"] for entry in shown] == found
    assert all(entry.keys() == set(Entry.__dataclass_fields__) for entry in shown)
    lines = call("audit", "show", *words).splitlines()
    assert [int(line.split()[0]) for line in lines] == found


def test_show_of_one_run_or_tenant(call: Call, journal: Journal) -> None:
    """What of this journal is about them; entries that say nothing of either are not."""
    for run, tenant in ((RUN, "acme"), ("0123ffffffff", "acme"), ("f" * 12, "other")):
        journal.append("run.start", {"run": run, "tenant": tenant})
        journal.append("run.end", {"run": run, "tenant": tenant})

    def found(*words: str) -> list[int]:
        return [entry["seq"] for entry in json.loads(call("audit", "show", "--json", *words))]

    assert found("--run", RUN) == [4, 5]
    assert found("--run", "0123") == [4, 5, 6, 7]
    assert found("--tenant", "acme") == [4, 5, 6, 7]
    assert found("--tenant", "acm") == []
    assert found("--tenant", "other", "--event", "run.end") == [9]
    assert found("--tenant", "acme", "--run", "f" * 12) == []


def test_show_lets_no_value_begin_a_line_or_reach_the_terminal(
    call: Call, journal: Journal
) -> None:
    out = call("audit", "show")
    assert len(out.splitlines()) == 3
    assert "".join(out.splitlines()).isprintable()
    assert 'keys="a b"' in out
    assert "empty" not in out


@pytest.mark.parametrize(
    "words",
    [
        ["--digest", "abc"],
        ["--digest", "zzzzzz"],
        ["--run", ""],
        ["--run", "012"],
        ["--run", "0123456789abc"],
        ["--run", "web"],
        ["--since", "yesterday"],
        ["--since", "99999999999999999d"],
        ["--since", "999999999d"],
        ["--since", ""],
    ],
)
def test_show_refuses_what_it_cannot_read(call: Call, journal: Journal, words: list[str]) -> None:
    with pytest.raises(UsageError):
        call("audit", "show", *words)


def test_show_of_a_changed_journal_fails(call: Call, journal: Journal) -> None:
    journal.path.write_bytes(journal.path.read_bytes().replace(b"image.pull", b"image.push"))
    with pytest.raises(StateError, match="chain is broken"):
        call("audit", "show")


def test_verify_and_export(call: Call, journal: Journal, tmp_path: Path) -> None:
    head = call("audit", "verify").strip()
    assert head.startswith("3:")
    assert call("audit", "verify", "--expect", head).strip() == head
    copy = tmp_path / "copy"
    call("audit", "export", str(copy))
    assert copy.read_bytes() == journal.path.read_bytes()
    assert head in call.err  # type: ignore[attr-defined]
    with journal.path.open("ab") as file:
        file.write(b'{"seq":')
    assert call("audit", "verify").strip() == head
    assert "half a line" in call.err  # type: ignore[attr-defined]
    journal.path.write_bytes(b"")
    with pytest.raises(StateError, match="cut off"):
        call("audit", "verify", "--expect", head)
    with pytest.raises(StateError, match="not a head"):
        call("audit", "verify", "--expect", "")


def test_a_broken_journal_does_not_replace_an_older_copy(
    call: Call, journal: Journal, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"older")
    journal.path.write_bytes(b"".join(journal.path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(StateError):
        call("audit", "export", str(copy))
    assert copy.read_bytes() == b"older"


def test_export_to_where_nothing_can_be_written(
    call: Call, journal: Journal, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match="cannot write"):
        call("audit", "export", str(tmp_path / "absent" / "copy"))


# --- what is remembered of a run -----------------------------------------------------------------


def events(directories: StateDirectories) -> list[str]:
    return [entry.event for entry in Journal(directories.journal).entries()]


TRUST = Trust((Claim(KEY, ONE, "registry.example.com/a:1", SignatureFormat.BUNDLE),))


def test_a_run_starts_and_ends(directories: StateDirectories, image: Image) -> None:
    memory = Memory(directories)
    memory.starts(RUN, image, TRUST, {"profile": "restricted"})
    memory.ended(report(exit_status=7, error="the guest died", accelerator=""))
    start, end = Journal(directories.journal).entries()
    assert (start.event, end.event) == ("run.start", "run.end")
    assert start.fields["keys"] == KEY
    assert start.fields["digest"] == str(image.digest)
    assert (end.fields["run"], end.fields["status"]) == (RUN, "7")
    (record,) = ImageRecords(directories.images).all()
    assert (record.runs, record.last_run, record.claims) == (1, RUN, TRUST.claims)
    assert record.size > 0
    assert record.seen[0].reference == str(image.reference)


@pytest.mark.parametrize("accelerator", ["", "kvm"])
def test_what_never_started_was_refused(directories: StateDirectories, accelerator: str) -> None:
    Memory(directories).ended(
        report(exit_status=123, error="no", image_digest=str(ONE), accelerator=accelerator)
    )
    assert events(directories) == ["run.refused"]


@pytest.mark.parametrize(
    ("status", "started", "error", "kept"),
    [
        (
            127,
            False,
            "the image has no command 's3cret' in PATH '/s3cret'",
            "the command cannot be run",
        ),
        (
            126,
            False,
            "the image's command 's3cret' cannot be executed",
            "the command cannot be run",
        ),
        (125, True, "the container did not start: exec s3cret", "the container did not start"),
        (123, False, "oci:/srv/a: no signature", "oci:/srv/a: no signature"),
        (127, True, "", ""),
    ],
)
def test_commands_and_environment_are_not_written(
    directories: StateDirectories, image: Image, status: int, started: bool, error: str, kept: str
) -> None:
    memory = Memory(directories)
    if started:
        memory.starts(RUN, image, TRUST, {})
    memory.ended(report(exit_status=status, error=error))
    assert [*Journal(directories.journal).entries()][-1].fields["error"] == kept
    assert "s3cret" not in Journal(directories.journal).path.read_text()


def test_a_journal_that_cannot_be_written_stops_a_run(
    directories: StateDirectories, image: Image
) -> None:
    directories.journal.parent.mkdir(parents=True, exist_ok=True)
    directories.journal.write_bytes(b"")
    with pytest.raises(StateError, match="cannot write the journal"):
        Memory(directories).starts(RUN, image, TRUST, {})
    assert ImageRecords(directories.images).all() == ()


def damage(directories: StateDirectories, digest: Digest) -> None:
    folder = directories.images / "records"
    folder.mkdir(parents=True)
    (folder / f"sha256-{digest.hex}.json").write_text("{")


def test_a_damaged_record_stops_no_run(directories: StateDirectories, image: Image) -> None:
    damage(directories, image.digest)
    Memory(directories).starts(RUN, image, TRUST, {})
    assert events(directories) == ["run.start"]


def test_a_damaged_record_is_told(directories: StateDirectories, image: Image) -> None:
    damage(directories, image.digest)
    with pytest.raises(StateError, match="damaged"):
        Memory(directories).verified(image.reference, image.digest, TRUST)
    told: list[str] = []
    Memory(directories, note=told.append).verified(image.reference, image.digest, TRUST)
    assert len(told) == 1
    assert "is not remembered" in told[0]
    assert events(directories) == ["image.verify"] * 2


def test_only_images_of_registries_have_blobs_in_the_store(
    directories: StateDirectories, image: Image
) -> None:
    records = ImageRecords(directories.images)
    memory = Memory(directories)
    memory.starts(RUN, image, TRUST, {})
    assert records.find(image.digest.hex).blobs == ()
    registry = Reference(Transport.DOCKER, "registry.example.com/a", "1")
    memory.starts(RUN, replace(image, reference=registry), Trust(insecure=True), {})
    record = records.find("registry.example.com/a:1")
    assert set(record.blobs) == set(image.digests.all)
    assert record.claims == TRUST.claims  # nobody looked this time


def test_what_is_deleted_and_forgotten_is_written_down_before(
    call: Call, directories: StateDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, ledger = ImageRecords(directories.images), Ledger(directories.ledger)
    name = "registry.example.com/a:1"

    def remember() -> None:
        records.change(ONE, lambda record: replace(record, seen=(SeenAs(name, 1.0), *record.seen)))
        ledger.advance(LedgerEntry(name, ONE, 1e9))

    remember()
    call("image", "rm", ONE.hex)
    call("policy", "forget", name)
    removed, forgotten = Journal(directories.journal).entries()
    assert (removed.event, forgotten.event) == ("image.rm", "policy.forget")
    assert removed.fields == {"reference": name, "digest": str(ONE), "running": ""}
    assert forgotten.fields == {"identity": name}
    # There is nothing left: nothing happens, and nothing is said to have.
    for words in (("image", "rm", ONE.hex), ("policy", "forget", name)):
        with pytest.raises(VmrunError):
            call(*words)
    assert len(events(directories)) == 2
    # What cannot be written down does not happen.
    remember()
    directories.journal.rename(directories.journal.with_name("aside"))
    directories.journal.write_bytes(b"")
    for words in (("image", "rm", ONE.hex), ("policy", "forget", name)):
        with pytest.raises(StateError, match="cannot write the journal"):
            call(*words)
    assert records.get(ONE) is not None
    assert ledger.newest(name) is not None


def test_a_damaged_entry_of_the_ledger_can_be_forgotten(
    call: Call, directories: StateDirectories
) -> None:
    name = "registry.example.com/a:1"
    ledger = Ledger(directories.ledger)
    ledger.advance(LedgerEntry(name, ONE, 1e9))
    (path,) = directories.ledger.iterdir()
    path.write_text("{")
    call("policy", "forget", name)
    assert events(directories) == ["policy.forget"]
    assert ledger.entries() == ()


# --- what runs now -------------------------------------------------------------------------------


def write_intent(directories: StateDirectories, run_id: str, **more: object) -> None:
    path = directories.guests / run_id / "intent.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def rules(tmp_path: Path, text: str) -> str:
    path = tmp_path / "trust.toml"
    path.write_text(f"version = 1\n{text}")
    path.chmod(0o644)
    return str(path)


@pytest.mark.parametrize(
    ("revokes", "why"),
    [
        (f'[[revoked.digests]]\ndigest = "{ONE}"\nreason = "hole"\n', f"digest {ONE}: hole"),
        (f'[[revoked.keys]]\nid = "{KEY}"\nreason = "lost"\n', f"key {KEY}: lost"),
        ("", ""),
    ],
    ids=["digest", "key", "nothing"],
)
def test_what_runs_is_compared_with_what_is_revoked(
    call: Call,
    directories: StateDirectories,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    revokes: str,
    why: str,
) -> None:
    file = rules(directories.guests.parent, revokes)
    assert call("audit", "running", "--trust-rules", file).split() == [
        "NAME",
        "RUN",
        "IMAGE",
        "REVOKED",
    ]
    with held_by_child(directories, "web") as (_, run_id):
        trust = (TrustFiles(Path(file).with_name("no.json"), Path(file)),)
        assert audit.running(directories, trust) == ()  # it has no image yet
        write_intent(
            directories,
            run_id,
            image="oci:/srv/a",
            image_digest=str(TWO),
            digests=[str(ONE), str(TWO)],
            keys=[KEY],
        )
        (found,) = audit.running(directories, trust)
        assert (found.name, found.run_id, found.image_digest) == ("web", run_id, str(TWO))
        assert found.revoked == why
        if why:
            with pytest.raises((typer.Exit, SystemExit)):
                make_app()(["audit", "running", "--trust-rules", file], standalone_mode=True)
            assert why in capsys.readouterr().out
    assert audit.running(directories, trust) == ()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"run_id": 1}', "null"],
    ids=["empty", "cut", "list", "no fields", "type", "null"],
)
def test_a_damaged_intent_of_a_live_guest_is_an_error(
    directories: StateDirectories, text: str
) -> None:
    with held_by_child(directories, "web") as (_, run_id):
        path = directories.guests / run_id / "intent.json"
        path.write_text(text)
        with pytest.raises(StateError, match="damaged") as caught:
            alive(directories)
        assert str(path) in caught.value.message
        path.unlink()  # as while it is removed
        assert alive(directories) == ()
        path.write_text(text)
    assert alive(directories) == ()  # its owner is gone


@pytest.mark.parametrize(
    "more",
    [
        {"kept_until": "soon"},
        {"kept_until": True},
        {"digests": [1]},
        {"keys": [None]},
        {"name": 1},
        {"owner": "x"},
    ],
)
def test_an_intent_of_wrong_types_is_damaged(
    directories: StateDirectories, more: dict[str, object]
) -> None:
    with held_by_child(directories, "web") as (_, run_id):
        write_intent(directories, run_id, **more)
        with pytest.raises(StateError, match="damaged"):
            alive(directories)


def test_digests_that_are_none_are_an_error_of_audit(directories: StateDirectories) -> None:
    with held_by_child(directories, "web") as (_, run_id):
        write_intent(directories, run_id, digests=["x"])
        with pytest.raises(StateError, match="intent of run 'web' is damaged"):
            audit.running(directories, ())
