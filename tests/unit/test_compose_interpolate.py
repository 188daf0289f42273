"""Variables in values, and files of variables."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compose.project import refused, service
from vmrun.compose.dotenv import parse_variables
from vmrun.compose.interpolate import MAX_TEXT, MAX_TOTAL, Variables
from vmrun.model.errors import UsageError

VALUES = {"SET": "value", "EMPTY": "", "OTHER": "o", "_x9": "u", "DOLLAR": "$SET ${SET}"}


def expand(text: str) -> str:
    return Variables(VALUES).expand(text)


@pytest.mark.parametrize(("text", "expanded"), [
    ("plain", "plain"),
    ("", ""),
    ("$SET", "value"),
    ("${SET}", "value"),
    ("a$SET-b", "avalue-b"),
    ("a${SET}b$OTHER", "avaluebo"),
    ("$_x9", "u"),
    ("$EMPTY", ""),
    ("$$SET", "$SET"),
    ("$$$SET", "$value"),
    ("$$", "$"),
    ("a$$b$$", "a$b$"),
    ("${SET:-d}", "value"),
    ("${EMPTY:-d}", "d"),
    ("${NONE:-d}", "d"),
    ("${NONE:-}", ""),
    ("${SET-d}", "value"),
    ("${EMPTY-d}", ""),
    ("${NONE-d}", "d"),
    ("${SET:?m}", "value"),
    ("${SET?m}", "value"),
    ("${EMPTY?m}", ""),
    ("${SET:+x}", "x"),
    ("${EMPTY:+x}", ""),
    ("${NONE:+x}", ""),
    ("${SET+x}", "x"),
    ("${EMPTY+x}", "x"),
    ("${NONE+x}", ""),
    ("${NONE:-${SET}}", "value"),
    ("${NONE:-${NONE:-${OTHER}}}", "o"),
    ("${NONE-$SET/$OTHER}", "value/o"),
    ("${NONE:-a $$ b}", "a $ b"),
    ("${NONE:-http://h:80/?q=1}", "http://h:80/?q=1"),
    ("${SET:-${NONE}}", "value"),
    ("${SET:-${NONE:?never}}", "value"),
    ("${NONE+${NONE}}", ""),
    ("a}b{c", "a}b{c"),
    ("$DOLLAR", "$SET ${SET}"),
])  # fmt: skip
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text) == expanded


@pytest.mark.parametrize(("text", "says", "hint"), [
    ("$NONE", "the variable NONE is not set", "${NONE:-}"),
    ("${NONE}", "the variable NONE is not set", "set it"),
    ("${NONE:-$GONE}", "the variable GONE is not set", "set it"),
    ("${NONE:?no name given}", "the variable NONE is required: no name given", "set NONE"),
    ("${EMPTY:?is empty}", "the variable EMPTY is required: is empty", "set EMPTY"),
    ("${NONE?$SET}", "the variable NONE is required: value", "set NONE"),
    ("${NONE:?}", "the variable NONE is required", "set NONE"),
    ("a $ b", "'$' without the name of a variable (character 3 of 5)", "$$"),
    ("^ok$", "'$' without the name of a variable", "$$"),
    ("$1", "'$' without the name of a variable", "$$"),
    ("$(id)", "'$' without the name of a variable", "$$"),
    ("${}", "'$' without the name of a variable", "$$"),
    ("${1}", "'$' without the name of a variable", "$$"),
    ("${", "'$' without the name of a variable", "$$"),
    ("${SET", "'${SET' without its '}'", "$$"),
    ("${SET/a/b}", "'${SET' without its '}'", "$$"),
    ("${SET:0:1}", "'${SET' without its '}'", "$$"),
    ("${SET:-d", "'${' without its '}'", "$$"),
    ('${NONE:-{"a":1}}', "a brace within the default of a variable", "$$"),
    ("${A:-" * 20 + "}" * 20, "variables nested more than 8 deep", "flatter"),
])  # fmt: skip
def test_what_is_refused(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand(text)
    assert caught.value.message.startswith(says)
    assert hint in caught.value.hint


def test_values_cannot_grow_without_end() -> None:
    with pytest.raises(UsageError, match="too long"):
        Variables({"A": "x" * 1000}).expand("$A" * (MAX_TEXT // 1000 + 1))
    variables = Variables({"A": "x" * MAX_TEXT})
    for _ in range(MAX_TOTAL // MAX_TEXT):
        variables.expand("$A")
    with pytest.raises(UsageError, match="too long"):
        variables.expand("$A")


@given(st.text(alphabet="${}AB:-?+ \\x", max_size=40))
def test_any_text_expands_or_is_an_error(text: str) -> None:
    try:
        Variables({"A": "1", "B": ""}).expand(text)
    except UsageError:
        return


@given(st.text())
def test_doubled_dollars_are_the_text_itself(text: str) -> None:
    assert Variables({}).expand(text.replace("$", "$$")) == text


# --- in a file ---------------------------------------------------------------------------------


def test_values_are_expanded_and_keys_are_not() -> None:
    found = service(
        "environment:", "  $KEY: $A", "  B: '${A}'", '  C: "$$A"', environment={"A": "1"}
    )
    assert found.environment == (("$KEY", "1"), ("B", "1"), ("C", "$A"))


def test_what_a_variable_holds_is_not_read_as_yaml() -> None:
    found = service("command: [echo, $A]", "user: ${U:-~}1", environment={"A": "[x, y]", "U": "a"})
    assert found.command == ("echo", "[x, y]")
    assert found.user == "a1"


def test_an_expanded_empty_value_is_not_null() -> None:
    found = service("environment:", "  A: $E", "  B: ${E}", environment={"E": "", "A": "host's"})
    assert found.environment == (("A", ""), ("B", ""))


def test_a_variable_that_is_not_set_says_where() -> None:
    error = refused("services:\n  web:\n    image: registry.example.com/${NAME}:1\n")
    assert error.message == "compose.yaml:3: services.web.image: the variable NAME is not set"
    assert "${NAME:-}" in error.hint


def test_extensions_that_are_ignored_need_no_variables() -> None:
    assert service("x-note: $NOWHERE").name == "web"


def test_a_variable_of_other_bytes_than_utf8_is_refused_where_it_is_used() -> None:
    bad = {"BAD": "\udcff"}
    assert service("user: '1'", environment=bad).user == "1"
    assert "BAD is not UTF-8" in str(refused_service("environment: [A=$BAD]", bad))
    assert "BAD is not UTF-8" in str(refused_service("environment: [BAD]", bad))


def refused_service(line: str, environment: dict[str, str]) -> UsageError:
    return refused(
        f"services:\n  web:\n    image: a.example.com/b\n    {line}\n", environment=environment
    )


def test_dot_env_comes_after_the_environment() -> None:
    files = {"/srv/shop/.env": b"A=file\nB=file\n"}
    found = service("environment: [A, B, C, D=$B]", files=files, environment={"A": "host"})
    assert found.environment == (("A", "host"), ("B", "file"), ("D", "file"))


def test_a_malformed_dot_env_is_an_error_that_does_not_show_the_line() -> None:
    error = refused("services: {}", files={"/srv/shop/.env": b"A=1\nhunter2 is it\n"})
    assert error.message == ".env:2: not NAME=VALUE"


# --- files of variables ------------------------------------------------------------------------


def variables(text: str, *, raw: bool = False) -> dict[str, str]:
    return parse_variables(text.encode(), "f.env", {"HOST": "h", "EMPTY": ""}, raw=raw)


@pytest.mark.parametrize(("line", "value"), [
    ("V=VAL", "VAL"),
    ("V=", ""),
    ("  V = VAL  ", "VAL"),
    ("export V=VAL", "VAL"),
    ("V=VAL # comment", "VAL"),
    ("V=VAL# no comment", "VAL# no comment"),
    ("V=# comment", ""),
    ("V= # comment", ""),
    ('V="VAL"', "VAL"),
    ("V='VAL'", "VAL"),
    ('V="VAL # no comment"', "VAL # no comment"),
    ('V="VAL" # comment', "VAL"),
    ("V='$OTHER'", "$OTHER"),
    ("V='${OTHER'", "${OTHER"),
    ("V='Let\\'s go!'", "Let's go!"),
    ('V="{\\"a\\": \\"b\\"}"', '{"a": "b"}'),
    ('V="some\\tvalue\\n"', "some\tvalue\n"),
    ("V='some\\tvalue'", "some\\tvalue"),
    ("V=some\\tvalue", "some\\tvalue"),
    ('V="\\$HOST"', "$HOST"),
    ("V=$HOST", "h"),
    ('V="${HOST}/x"', "h/x"),
    ("V=${NONE:-d}", "d"),
    ("V=a=b", "a=b"),
    ("V=VAL\r", "VAL"),
])  # fmt: skip
def test_lines(line: str, value: str) -> None:
    assert variables(f"# first\n\n{line}\n") == {"V": value}


def test_earlier_lines_are_variables_and_a_bare_name_is_passed_on() -> None:
    assert variables("A=1\nB=$A$HOST\nHOST\nNONE\n") == {"A": "1", "B": "1h", "HOST": "h"}


def test_raw_files_are_taken_as_they_are() -> None:
    assert variables('A="$X" # c\n B= y\n', raw=True) == {"A": '"$X" # c', "B": " y"}


@pytest.mark.parametrize(("text", "says"), [
    ("A=1\nB C=2\n", "f.env:2: not NAME=VALUE"),
    ("=x\n", "f.env:1: not NAME=VALUE"),
    ("A='x\n", "f.env:1: a quote that is not closed"),
    ('A="x" y\n', "f.env:1: text after the closing quote"),
    ("A=$NONE\n", "f.env:1: the variable NONE is not set"),
    ("A=pa$$w$\n", "f.env:1: '$' without the name of a variable (character 6 of 6)"),
    ("A=\0\n", "f.env: holds a NUL character"),
    ("A=1\n" * 2 + "".join(f"V{n}=1\n" for n in range(2001)), "f.env: more than 2000 variables"),
])  # fmt: skip
def test_lines_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        variables(text)
    assert caught.value.message == says
    assert caught.value.hint


def test_bytes_that_are_no_variables() -> None:
    for data, says in ((b"A=\xff", "not UTF-8"), (b"A=" + b"x" * (1 << 20), "larger than 1 MiB")):
        with pytest.raises(UsageError, match=says):
            parse_variables(data, "f.env", {})


def test_long_lines_take_no_long_time() -> None:
    started = time.monotonic()
    variables("A=x" + " " * 1_000_000 + "y\nB='" + "\\" * 40_000 + " '\n")
    assert time.monotonic() - started < 3


@given(st.text(alphabet="AB=$'\"{}\\# \n\r:-", max_size=60))
def test_any_file_is_variables_or_an_error(text: str) -> None:
    try:
        found = parse_variables(text.encode(), "f.env", {"A": "1"})
    except UsageError:
        return
    assert all(isinstance(value, str) for value in found.values())
