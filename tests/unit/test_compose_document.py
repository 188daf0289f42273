"""Compose files as YAML: what is read, what is refused, and where it says the mistake is."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.compose.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, read_document
from vmrun.compose.node import Entry, Mapping, Node, Scalar, Sequence
from vmrun.model.errors import UsageError


def plain(node: Node) -> object:
    """As dictionaries, lists and texts; None for null."""
    if isinstance(node, Scalar):
        return None if node.null else node.text
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {entry.key: plain(entry.value) for entry in node.entries}


def read(text: str | bytes) -> object:
    return plain(read_document(text if isinstance(text, bytes) else text.encode(), "c.yaml"))


def refused(text: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "text", ["22:22", "0400", "yes", "off", "1.10", "1e3", "0x1f", ".inf", "2001-01-01", "1_000"]
)
def test_what_yaml_takes_for_something_else_stays_what_was_written(text: str) -> None:
    assert read(f"a: {text}\nb: [{text}]") == {"a": text, "b": [text]}


@pytest.mark.parametrize(("text", "value"), [
    ("a:", None), ("a: ~", None), ("a: null", None), ("a: ''", ""), ('a: "null"', "null"),
    ("a: nUll", "nUll"), ("a: !!str null", "null"),
])  # fmt: skip
def test_null_is_only_what_stands_without_quotes(text: str, value: str | None) -> None:
    assert read(text) == {"a": value}


def test_lines_are_those_of_the_file() -> None:
    root = read_document(b"# one\na: 1\nb:\n  - x\n  - y: z\n", "c.yaml")
    assert root == Mapping(
        (
            Entry("a", 2, Scalar("1", True, 2)),
            Entry(
                "b",
                3,
                Sequence(
                    (
                        Scalar("x", True, 4),
                        Mapping((Entry("y", 5, Scalar("z", True, 5)),), 5),
                    ),
                    4,
                ),
            ),
        ),
        2,
    )


def test_merges() -> None:
    assert read("x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  <<: [*x, *y]\n  a: 0\n") == {
        "x": {"a": "1", "b": "1"},
        "y": {"b": "2", "c": "2"},
        "z": {"a": "0", "b": "1", "c": "2"},
    }


def test_a_merge_of_a_merge() -> None:
    text = "x: &x {a: 1}\ny: &y {<<: *x, b: 2}\nz: {<<: *y, c: 3}\n"
    assert read(text)["z"] == {"a": "1", "b": "2", "c": "3"}  # type: ignore[index]


def test_a_quoted_merge_key_is_a_key() -> None:
    assert read("'<<': 1") == {"<<": "1"}


@pytest.mark.parametrize(("text", "line", "says"), [
    ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' stands twice"),
    ("a: 1\n'a': 3\n", 2, "the key 'a' stands twice"),
    ("x:\n  - a: 1\n    a: 2\n", 3, "the key 'a' stands twice"),
    ("x: &x {}\ny:\n  <<: *x\n  <<: *x\n", 4, "the key '<<' stands twice"),
    ("x: &x [1]\ny:\n  <<: *x\n", 3, "'<<' merges mappings only"),
    ("x:\n  <<: text\n", 2, "'<<' merges mappings only"),
    ("a: !!python/object/apply:os.system [id]\n", 1, "a tag"),
    ("a:\n  b: !secret x\n", 2, "a tag: '!secret'"),
    ("a: !!binary aGk=\n", 1, "a tag"),
    ("a: !!int '3'\n", 1, "a tag"),
    ("a: !reset []\n", 1, "a tag: '!reset'"),
    ("a: 1\n---\nb: 2\n", 2, "a second document"),
    ("a: 1\n...\n---\n", 3, "a second document"),
    ("a: *b\n", 1, "the alias 'b' has no anchor before it"),
    ("a: &a\n  b: *a\n", 2, "the alias 'a' names what it stands in"),
    ("a: &x 1\nb: &x 2\n", 2, "the anchor 'x' stands twice"),
    ("? [a, b]\n: 1\n", 1, "a key that is not a text"),
    ("a: [1\nb: 2\n", 2, "not YAML"),
    ("a: 1\n\tb: 2\n", 2, "not YAML"),
    ("a: 'x\n", 2, "not YAML"),
    ("a:\n - b\n c: d\n", 3, "not YAML"),
    ("- a\n", 1, "not a mapping"),
    ("text", 1, "not a mapping"),
    ('a: "\\ud800"\n', 1, "half of a surrogate pair"),
    ('a: "x\\0y"\n', 1, "a NUL character"),
    ("a: 1\nb: \x07\n", 2, "a character that YAML does not allow: U+0007"),
])  # fmt: skip
def test_what_is_refused_says_where(text: str, line: int, says: str) -> None:
    assert refused(text).startswith(f"c.yaml:{line}: {says}")


@pytest.mark.parametrize("text", ['a: "\\UFFFFFFFF"', f"%YAML 1.{'9' * 5000}\n---\na: 1"])
def test_numbers_that_break_the_parser_are_refused(text: str) -> None:
    assert refused(text).startswith("c.yaml: not YAML")


@pytest.mark.parametrize(("data", "says"), [
    (b"", "c.yaml: empty"),
    (b"# nothing\n", "c.yaml: empty"),
    (b"a: 1\nb: \xff\n", "c.yaml:2: not UTF-8"),
    (b"a: " + b"x" * MAX_BYTES, "c.yaml: larger than 1 MiB"),
])  # fmt: skip
def test_bytes_that_are_no_document(data: bytes, says: str) -> None:
    assert refused(data) == says


def test_a_byte_order_mark_is_taken_off() -> None:
    assert read(b"\xef\xbb\xbfa: 1") == {"a": "1"}


def test_aliases_that_stand_for_billions_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.monotonic()
    assert "with its aliases expanded" in refused("\n".join(lines))
    assert time.monotonic() - started < 2


def test_merges_that_stand_for_billions_are_refused_at_once() -> None:
    lines = ["m0: &m0 {" + ", ".join(f"k{n}: [x, x, x, x]" for n in range(50)) + "}"]
    for n in range(1, 12):
        inner = ", ".join(f"k{at}: *m{n - 1}" for at in range(50))
        lines.append(f"m{n}: &m{n} {{<<: *m{n - 1}, {inner}}}")
    assert "with its aliases expanded" in refused("\n".join(lines))


def test_aliases_do_not_get_around_the_depth() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, MAX_DEPTH + 2)]
    assert f"nested more than {MAX_DEPTH} deep" in refused("\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000])
def test_deep_nesting_is_refused(text: str) -> None:
    assert f"nested more than {MAX_DEPTH} deep" in refused(
        f"x: {text}" if text[0] in "[{" else text
    )


def test_many_values_are_refused_before_all_are_read() -> None:
    text = "a:\n" + "- b\n" * (MAX_BYTES // 4 - 10)
    tracemalloc.start()
    assert f"more than {MAX_NODES} values" in refused(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


@given(st.text(max_size=200))
def test_any_text_is_a_mapping_or_an_error(text: str) -> None:
    try:
        root = read_document(text.encode("utf-8", "surrogatepass"), "c.yaml")
    except UsageError:
        return
    assert isinstance(root, Mapping)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_mapping_or_an_error(data: bytes) -> None:
    try:
        read_document(data, "c.yaml")
    except UsageError:
        return


@given(st.lists(st.sampled_from(
    ["a", "b", ":", ": ", "-", "- ", "\n", "\n  ", " ", "[", "]", "{", "}", ",", "&x ", "*x",
     "<<: ", "'", '"', "|", ">", "#", "?", "!", "!!str ", "%", "---", "...", "\\x", "\t", "~", "@"]
), max_size=30))  # fmt: skip
def test_any_words_of_yaml_are_a_mapping_or_an_error(words: list[str]) -> None:
    try:
        read_document("".join(words).encode(), "c.yaml")
    except UsageError:
        return
