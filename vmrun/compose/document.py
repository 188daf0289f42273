"""Strict reading of YAML: PyYAML's parser, and none of its constructors.

Only the events of ``yaml.parse`` are used (YAML 1.1, as PyYAML knows it): no tag makes an object,
no scalar is converted, and limits are checked while the file is read rather than afterwards. An
alias shares what its anchor names; how large that is when expanded is counted at once, so that a
few lines cannot stand for billions of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import yaml

from vmrun.compose.interpolate import is_text
from vmrun.compose.node import Entry, Mapping, Node, Scalar, Sequence, height, weight
from vmrun.model.errors import UsageError

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 24
MAX_ALIASES = 1_000
MAX_LINE = 1_000_000
_MERGE = "<<"
_STRING_TAG = "tag:yaml.org,2002:str"


def read_document(data: bytes, where: str) -> Mapping:
    """The one document of a file, which must be a mapping. ``where`` names the file in messages.

    Raises :class:`UsageError` with file and line for whatever is malformed, ambiguous (a key that
    stands twice, a tag, several documents) or beyond the limits.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where}: larger than {MAX_BYTES >> 20} MiB", hint="make it smaller")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{where}:{line}: not UTF-8", hint="save it as UTF-8") from None
    root = _Builder(where, _events(text, where)).document()
    if not isinstance(root, Mapping):
        raise _error(where, root.line, "not a mapping", hint="begin with 'services:'")
    return root


def _events(text: str, where: str) -> Iterator[yaml.Event]:
    """The parser's events; its errors, and those of hostile escapes and numbers, as ours."""
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = str(error.problem or error.context or "malformed")
        raise _error(where, line, f"not YAML: {problem[:200]}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(
            where, line, f"a character that YAML does not allow: U+{_code(error.character):04X}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets chr() and int() fail for escapes and versions that are out of range.
        raise UsageError(f"{where}: not YAML: {str(error)[:200]}", hint=_HINT) from None


_HINT = "docs/reference/compose.md says what a compose file may hold"


def _code(character: str | int | bytes) -> int:
    if isinstance(character, int):
        return character
    return ord(character[:1] or "\0")


def _error(where: str, line: int, problem: str, hint: str = _HINT) -> UsageError:
    return UsageError(f"{where}:{line}: {problem}", hint=hint)


@dataclass(slots=True)
class _Count:
    nodes: int = 0
    aliases: int = 0


class _Builder:
    """Nodes of events. Recursive, but never deeper than :data:`MAX_DEPTH`."""

    def __init__(self, where: str, events: Iterator[yaml.Event]) -> None:
        self._where = where
        self._events = events
        self._anchors: dict[str, Node] = {}
        self._open: set[str] = set()
        self._count = _Count()

    def document(self) -> Node:
        self._next()
        start = self._next()
        if isinstance(start, yaml.StreamEndEvent):
            raise UsageError(f"{self._where}: empty", hint="begin with 'services:'")
        root = self._node(self._next(), 0)
        self._next()
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._wrong(
                after, "a second document", "one file holds one document: remove the line '---'"
            )
        return root

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _wrong(self, event: yaml.Event, problem: str, hint: str = _HINT) -> UsageError:
        return _error(self._where, _line(event), problem, hint)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            raise self._wrong(event, "not a value")
        self._count.nodes += 1
        if self._count.nodes > MAX_NODES:
            raise self._wrong(event, f"more than {MAX_NODES} values", "make it smaller")
        if depth > MAX_DEPTH:
            raise self._too_deep(event)
        anchor, tag = event.anchor, event.tag
        if tag is not None and not (isinstance(event, yaml.ScalarEvent) and tag == _STRING_TAG):
            raise self._wrong(event, f"a tag: {tag[:80]!r}", "write the value without a tag")
        if anchor is not None:
            if anchor in self._anchors or anchor in self._open:
                raise self._wrong(
                    event, f"the anchor {anchor[:80]!r} stands twice", "give each its own name"
                )
            self._open.add(anchor)
        node = self._value(event, depth)
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent) -> Node:
        self._count.aliases += 1
        name = str(event.anchor)
        if self._count.aliases > MAX_ALIASES:
            raise self._wrong(event, f"more than {MAX_ALIASES} aliases", "make it smaller")
        if name not in self._anchors:
            why = "names what it stands in" if name in self._open else "has no anchor before it"
            raise self._wrong(event, f"the alias {name[:80]!r} {why}", f"write &{name[:80]} first")
        return self._anchors[name]

    def _value(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            total, deep = self._measure(event, items)
            return Sequence(tuple(items), _line(event), total, deep)
        entries = []
        while not isinstance(inner := self._next(), yaml.MappingEndEvent):
            key = self._node(inner, depth + 1)
            if not isinstance(key, Scalar):
                raise self._wrong(inner, "a key that is not a text", "write KEY: VALUE")
            value = self._next()
            line = _line(inner)
            entries.append((key, Entry(key.text, line, self._node(value, depth + 1))))
        merged = self._merge(event, entries)
        total, deep = self._measure(event, (entry.value for entry in merged))
        return Mapping(tuple(merged), _line(event), total + len(merged), deep)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        text: str = event.value
        if not is_text(text):
            raise self._wrong(event, "half of a surrogate pair", "write it as UTF-8")
        if "\0" in text:
            raise self._wrong(event, "a NUL character", "remove it")
        return Scalar(text, event.style is None and event.tag is None, _line(event))

    def _measure(self, event: yaml.Event, inner: Iterable[Node]) -> tuple[int, int]:
        nodes = list(inner)
        total = 1 + sum(weight(node) for node in nodes)
        deep = 1 + max((height(node) for node in nodes), default=0)
        if total > MAX_NODES:
            raise self._wrong(
                event, f"more than {MAX_NODES} values with its aliases expanded", "make it smaller"
            )
        if deep > MAX_DEPTH:
            raise self._too_deep(event)
        return total, deep

    def _too_deep(self, event: yaml.Event) -> UsageError:
        return self._wrong(event, f"nested more than {MAX_DEPTH} deep", "make it flatter")

    def _merge(self, event: yaml.Event, written: list[tuple[Scalar, Entry]]) -> list[Entry]:
        """Own keys first, each once; then those of ``<<`` that are not among them, of which the
        first one counts (yaml.org/type/merge.html)."""
        found: dict[str, Entry] = {}
        merges: list[Entry] = []
        for key, entry in written:
            is_merge = key.plain and key.text == _MERGE
            if entry.key in found or (is_merge and merges):
                raise _error(
                    self._where,
                    entry.line,
                    f"the key {entry.key[:80]!r} stands twice",
                    hint="merge several with <<: [*a, *b]" if is_merge else "remove one of them",
                )
            if is_merge:
                merges.append(entry)
            else:
                found[entry.key] = entry
        for merge in merges:
            for source in self._merged(merge):
                for entry in source.entries:
                    found.setdefault(entry.key, entry)
        return list(found.values())

    def _merged(self, merge: Entry) -> tuple[Mapping, ...]:
        value = merge.value
        sources = value.items if isinstance(value, Sequence) else (value,)
        if not all(isinstance(source, Mapping) for source in sources):
            raise _error(
                self._where,
                merge.line,
                "'<<' merges mappings only",
                hint="lists cannot be merged: write <<: *NAME with the anchor of a mapping",
            )
        return tuple(source for source in sources if isinstance(source, Mapping))


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else int(event.start_mark.line) + 1
