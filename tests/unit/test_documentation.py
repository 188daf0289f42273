"""What the documentation says against what there is: links, options, statuses, settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vmrun.cli.main import make_app
from vmrun.model import errors, report
from vmrun.policy.profiles import MASKED_PATHS, PROFILES, READONLY_PATHS
from vmrun.settings import _DEFAULTS, load_settings

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")])

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][a-z-]*")


def page_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def links(page: Path) -> list[str]:
    return _LINK.findall(_FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """As code hosts make them of headings."""
    titles = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(REPOSITORY), link
        assert target.exists(), link
        if fragment:
            assert fragment in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    readme = REPOSITORY / "README.md"
    linked = {(readme.parent / link).resolve() for link in links(readme)}
    assert set(DOCS.rglob("*.md")) <= linked


# --- commands ------------------------------------------------------------------------------


def commands(command: Any, name: str = "vmrun") -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from commands(below, f"{name} {child}")


def command_options() -> dict[str, set[str]]:
    found = {}
    for name, command in commands(typer.main.get_command(make_app())):
        options = {
            spelling
            for parameter in command.params
            if parameter.param_type_name == "option" and not parameter.hidden
            for spelling in (*parameter.opts, *parameter.secondary_opts)
        }
        if options or not getattr(command, "commands", {}):
            found[name] = options
    return found


def documented_options() -> dict[str, set[str]]:
    """By section: options named in the first cell of a table's row, or in the paragraph of
    ``plan``, which shares those of ``run``."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", (REFERENCE / "commands.md").read_text(), flags=re.M)[1:]:
        name, _, text = section.partition("\n")
        named = "\n".join(re.findall(r"^\| (`-.*?) \|", text, flags=re.M))
        if name == "vmrun plan":
            named += text.partition("The options of `run`")[2].partition("And:")[0]
        found[name] = {
            option for code in re.findall(r"`([^`]+)`", named) for option in _OPTION.findall(code)
        }
    return found


def test_commands_are_documented() -> None:
    assert documented_options().keys() == command_options().keys()


@pytest.mark.parametrize("name", command_options())
def test_options_are_documented(name: str) -> None:
    assert documented_options()[name] == command_options()[name]


def test_options_in_other_pages_exist() -> None:
    known = {option for options in command_options().values() for option in options}
    for page in PAGES:
        for line in page.read_text().splitlines():
            for call in re.findall(r"\bvmrun(?: base)? (?:run|plan|build|list|doctor)\b.*", line):
                words = re.split(r" -- |[|`]", call)[0].split()
                for word in words:
                    option = word.partition("=")[0].rstrip(".,;:)")
                    if option.startswith("--"):
                        assert option in known, f"{page_name(page)}: {line}"


def test_defaults_in_commands_are_those_of_the_settings() -> None:
    text = (REFERENCE / "commands.md").read_text()
    said = dict(re.findall(r"setting `(\w+)` \(([\w]+)\)", text))
    assert said == {key: _DEFAULTS[key] for key in said}
    assert said.keys() == {"cpus", "memory", "pids_limit", "profile", "engine", "connect"}


# --- exit statuses, settings, profiles, reports ---------------------------------------------


def rows(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_exit_statuses_are_those_of_the_code() -> None:
    said = {
        row[1].strip("`"): int(row[0])
        for row in rows(REFERENCE / "exit-status.md")
        if row[1].startswith("`EXIT_")
    }
    assert said == {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_settings_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = {
        row[0].strip("`"): (row[1].strip("`"), row[3].strip("`"))
        for row in rows(REFERENCE / "settings.md")
        if len(row) == 5 and row[0].startswith("`")
    }
    assert said.keys() == _DEFAULTS.keys()
    for key, (variable, default) in said.items():
        if key != "state_dir":
            assert default == _DEFAULTS[key]
        assert variable == ("none" if key == "minimum_profile" else f"VMRUN_{key.upper()}")
    monkeypatch.setattr("vmrun.settings.SITE_FILE", tmp_path / "absent.toml")
    environment = {"HOME": str(tmp_path), "VMRUN_MEMORY": "1g", "VMRUN_MINIMUM_PROFILE": "x"}
    assert load_settings(environment).memory == "1g"


def test_profiles_are_those_of_the_code() -> None:
    text = (REFERENCE / "profiles.md").read_text()
    table = {row[0]: row[1:] for row in rows(REFERENCE / "profiles.md")}
    profiles = list(PROFILES.values())
    said = [name.split("`")[1] for name in table[""]]
    assert said == [profile.name for profile in profiles]
    assert [int(cell) for cell in table["`--pids-limit` at most"]] == [p.max_pids for p in profiles]
    assert [int(cell) for cell in table["strictness"]] == [p.strictness for p in profiles]
    for label, granted in (
        ("root in the container", [p.allow_root for p in profiles]),
        ("`--no-read-only`", [p.allow_writable_root for p in profiles]),
        ("`--tmpfs PATH:exec`", [p.allow_executable_tmpfs for p in profiles]),
    ):
        assert [cell == "allowed" for cell in table[label]] == granted, label
    assert [c.startswith("yes") for c in table["requires KVM"]] == [
        p.require_isolation for p in profiles
    ]
    assert all(not profile.capabilities for profile in profiles)
    assert set(re.findall(r"CAP_[A-Z_]+", text)) == set().union(*(p.may_add for p in profiles))


def test_masked_paths_are_those_of_the_code() -> None:
    text = (REFERENCE / "hardening.md").read_text()
    masked, _, rest = text.partition("Masked, as far as")[2].partition("Read-only:")
    assert set(re.findall(r"`(/[^`]+)`", masked)) == set(MASKED_PATHS)
    assert set(re.findall(r"`(/[^`]+)`", rest.partition("\n\n")[0])) - {"/sys"} == set(
        READONLY_PATHS
    )


def test_report_fields_are_those_of_the_code() -> None:
    said = {
        name
        for row in rows(REFERENCE / "report-json.md")
        for name in re.findall(r"`(\w+)`", row[0])
    }
    for kind in (report.Report, report.Assertion, report.Usage, report.Removed):
        assert set(kind.__dataclass_fields__) <= said, kind


def test_phases_are_those_of_the_pipeline() -> None:
    parts = ("run/pipeline.py", "run/decide.py", "run/clock.py", "supervisor/live.py")
    code = "".join((REPOSITORY / "vmrun" / name).read_text() for name in parts)
    text = (REFERENCE / "report-json.md").read_text()
    section = text.partition("## phases")[2].partition("## assertions")[0]
    said = re.findall(r"^\| `([a-z ]+)` \|", section, flags=re.M)
    there = {*re.findall(r'clock\.phase\("([^"]+)"\)', code), "load"}
    assert len(said) == len(set(said))
    assert set(said) == there


# --- what does not belong in there ----------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_nothing_of_one_place_or_one_registry(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"/(?:home|root|work|tmp|Users|mnt|scratch)/", text)
    assert not re.search(r"\b(?:docker\.io|quay\.io|ghcr\.io|gcr\.io)/", text)
    assert not re.search(r"\b(?:TODO|FIXME|XXX|TBD)\b", text)
    assert not re.search(r"img\.shields|badge", text)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_nothing_is_promised_that_only_an_organization_can_keep(page: Path) -> None:
    """A program satisfies no law, and no page says that it does."""
    text = _FENCE.sub("", page.read_text())
    said = re.search(r"\b(?:complian(?:t|ce)|certified|guarantees?)\b", text, flags=re.IGNORECASE)
    assert said is None, text[max(0, said.start() - 60) : said.end() + 60]


def test_the_page_about_hipaa_has_every_technical_safeguard() -> None:
    text = (DOCS / "explanation" / "hipaa.md").read_text()
    for paragraph in (
        *("(a)(1)", "(a)(2)(i),", "(a)(2)(ii),", "(a)(2)(iii),", "(a)(2)(iv),"),
        *("(b)\n", "(c)(1) and (c)(2)", "(d)\n", "(e)(1), (e)(2)(i) and (ii)"),
    ):
        assert re.search(rf"^##+ .*164\.312{re.escape(paragraph)}", text, flags=re.M), paragraph
    sections = re.split(r"^##+ ", text, flags=re.M)[1:]
    for section in sections:
        title = section.partition("\n")[0]
        parts = ("*Evidence:*", "*Yours:*")
        assert all(part in section for part in parts), title
        if "164.312" in title:
            assert "*The rule:*" in section, title
            assert "*What supports it:*" in section, title


def test_commands_of_the_makefile_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*(?: [a-z-]+)*):", makefile, flags=re.M))
    known = {name for line in targets for name in line.split()}
    for page in PAGES:
        for name in re.findall(r"(?:^|`)make ([a-z-]+)\b", page.read_text(), flags=re.M):
            assert name in known, f"{page_name(page)}: make {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for name in re.findall(r"`((?:vmrun|images|tests|ansible|docs)/[\w./-]+)`", text):
        if name != "vmrun/1":  # the guest contract's version
            assert (REPOSITORY / name).exists(), name
