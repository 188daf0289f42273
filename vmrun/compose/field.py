"""A value of a compose file with checked access: every error names file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from collections.abc import Mapping as MappingOf
from typing import TypeVar

from vmrun.compose.interpolate import Variables
from vmrun.compose.node import Mapping, Node, Scalar, Sequence
from vmrun.model.errors import UsageError, VmrunError

REFERENCE = "docs/reference/compose.md lists what is supported"
EXTENSION = "x-"
OWN_EXTENSION = "x-vmrun"
_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})
_INTEGER = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_SHOWN = 80
_Value = TypeVar("_Value")


class Field:
    """One value. ``path`` is its place in the document, such as ``services.web.ports[0]``."""

    __slots__ = ("_file", "_line", "_node", "_variables", "path")

    def __init__(
        self, node: Node, variables: Variables, *, file: str, path: str, line: int
    ) -> None:
        self._node = node
        self._variables = variables
        self._file = file
        self._line = line
        self.path = path

    @property
    def where(self) -> str:
        """File, line and key."""
        return f"{self._file}:{self._line}: {self.path}" if self.path else self._file

    def wrong(self, problem: str, hint: str = REFERENCE) -> UsageError:
        """An error about this value, to be raised."""
        return UsageError(f"{self.where}: {problem}", hint=hint)

    def rethrow(self, error: VmrunError) -> UsageError:
        """What another reader said of this value, as an error with its place."""
        return self.wrong(error.message, error.hint or REFERENCE)

    # --- what it is --------------------------------------------------------------------------

    @property
    def null(self) -> bool:
        """Whether nothing stands there, or null."""
        return isinstance(self._node, Scalar) and self._node.null

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self._node, Sequence)

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self._node, Mapping)

    # --- texts, with their variables replaced ------------------------------------------------

    def text(self, *, empty: bool = False) -> str:
        """A text as it is written; numbers and booleans are texts, too, null is none."""
        if not isinstance(self._node, Scalar) or self._node.null:
            raise self.wrong("must be a text")
        try:
            text = self._variables.expand(self._node.text)
        except UsageError as error:
            raise self.rethrow(error) from None
        if "\0" in text:
            raise self.wrong("holds a NUL character", "remove it")
        if not text and not empty:
            raise self.wrong("must not be empty", "give a value, or remove the key")
        return text

    def part(self, text: str) -> Field:
        """A part of this text, with this text's place; its variables are replaced already."""
        node = Scalar(text.replace("$", "$$"), False, self._line)
        return Field(node, self._variables, file=self._file, path=self.path, line=self._line)

    def word(self) -> str:
        """A text of one line without control characters."""
        text = self.text()
        if not text.isprintable():
            raise self.wrong("holds control characters", "write it on one line")
        return text

    def boolean(self) -> bool:
        """true or false, or one of YAML 1.1's other words for them."""
        text = self.word().lower()
        if text not in _TRUE | _FALSE:
            raise self.unusable("true or false")
        return text in _TRUE

    def integer(self, least: int, most: int) -> int:
        """A whole number in decimal digits."""
        text = self.word()
        if _INTEGER.fullmatch(text) is None or not least <= int(text) <= most:
            raise self.unusable(f"a whole number from {least} to {most}")
        if len(text) > 1 and text.startswith("0"):
            raise self.unusable("a decimal number, without a leading 0")
        return int(text)

    def number(self, most: float) -> float:
        """A number above 0, in decimal notation."""
        text = self.word()
        if _NUMBER.fullmatch(text) is None or not 0 < float(text) <= most:
            raise self.unusable(f"a number above 0, at most {most:g}")
        return float(text)

    def choice(self, choices: MappingOf[str, _Value]) -> _Value:
        """What one of the words stands for."""
        text = self.word()
        if text not in choices:
            raise self.unusable("one of " + ", ".join(choices))
        return choices[text]

    def unusable(self, expected: str, hint: str = REFERENCE) -> UsageError:
        """An error that shows the value and says what must stand there, to be raised."""
        return self.wrong(f"{self.word()[:_SHOWN]!r} must be {expected}", hint)

    # --- lists and mappings ------------------------------------------------------------------

    def items(self, limit: int = 1_000) -> list[Field]:
        """The values of a list, which may be empty."""
        if not isinstance(self._node, Sequence):
            raise self.wrong("must be a list", "write it as lines that begin with '- '")
        nodes = self._node.items
        if len(nodes) > limit:
            raise self.wrong(f"has {len(nodes)} entries, the limit is {limit}", "use fewer")
        return [self._child(node, f"[{at}]", node.line) for at, node in enumerate(nodes)]

    def one_or_more(self, limit: int = 1_000) -> list[Field]:
        """The values of a list, or the one text that stands in its place."""
        return self.items(limit) if self.is_list else [self]

    def named(self, limit: int = 1_000) -> dict[str, Field]:
        """The values of a mapping whose keys are the file's own names, such as services."""
        if not isinstance(self._node, Mapping):
            raise self.wrong("must be a mapping", "write it as lines of KEY: VALUE")
        entries = self._node.entries
        if len(entries) > limit:
            raise self.wrong(f"has {len(entries)} entries, the limit is {limit}", "use fewer")
        return {
            entry.key: self._child(
                entry.value, ("." if self.path else "") + _shown(entry.key), entry.line
            )
            for entry in entries
        }

    def section(
        self,
        known: Collection[str],
        refused: MappingOf[str, str] | None = None,
        *,
        extensions: bool = True,
    ) -> dict[str, Field]:
        """The values of a mapping with fixed keys. ``refused`` says of keys that the format knows
        why vmrun does not take them. Any other key is an error, but for ``x-…``, which the
        specification has ignored (11-extension.md); ``x-vmrun`` never is."""
        fields = self.named()
        for key, field in fields.items():
            if key in known:
                continue
            if refused and key in refused:
                raise field.wrong(f"not supported: {refused[key]}")
            if extensions and key.startswith(EXTENSION) and not key.startswith(OWN_EXTENSION):
                continue
            near = difflib.get_close_matches(key[:_SHOWN], sorted(known), n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise field.wrong(
                f"unknown key {key[:_SHOWN]!r}{guess}",
                f"supported there: {', '.join(sorted(known)) or 'nothing'}",
            )
        return {key: field for key, field in fields.items() if key in known}

    def _child(self, node: Node, step: str, line: int) -> Field:
        return Field(node, self._variables, file=self._file, path=f"{self.path}{step}", line=line)


def _shown(key: str) -> str:
    short = key[:_SHOWN]
    return short if short and short.isprintable() else repr(short)
