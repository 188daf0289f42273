"""Settings: what wins over what, what a site can insist on, and how a bad file is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmrun import settings
from vmrun.model.errors import SettingsError
from vmrun.model.workload import EngineName, ProfileName
from vmrun.settings import Settings, load_settings


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load from the text of the site's and the user's file (None: no file) and variables."""
    site_file = tmp_path / "etc" / "config.toml"
    user_file = tmp_path / "home" / ".config" / "vmrun" / "config.toml"
    site_file.parent.mkdir()
    user_file.parent.mkdir(parents=True)
    monkeypatch.setattr(settings, "SITE_FILE", site_file)

    def call(site: str | None = None, user: str | None = None, **variables: str) -> Settings:
        for path, text in ((site_file, site), (user_file, user)):
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        return load_settings({"HOME": str(tmp_path / "home"), **variables})

    return call


def test_defaults(load: Any) -> None:
    found = load()
    assert (found.profile, found.floor) == (ProfileName.RESTRICTED, ProfileName.BASELINE)
    assert (found.engine, found.connect) == (EngineName.CRUN, "embedded")
    assert (found.memory, found.cpus, found.pids_limit) == ("128m", "1", "128")


def test_environment_then_user_then_site_then_default(load: Any) -> None:
    site, user = 'memory = "1m"\ncpus = 2\npids_limit = 3', 'memory = "2m"\ncpus = 3'
    found = load(site, user, VMRUN_MEMORY="3m")
    assert (found.memory, found.cpus, found.pids_limit) == ("3m", "3", "3")
    assert load(site, user).memory == "2m"
    assert load(site).memory == "1m"
    assert load(site).engine is EngineName.CRUN


@pytest.mark.parametrize(
    ("key", "value", "attribute"),
    [
        ("profile", "healthcare", "profile"),
        ("engine", "docker", "engine"),
        ("memory", "64m", "memory"),
        ("cpus", "0.5", "cpus"),
        ("pids_limit", "7", "pids_limit"),
        ("connect", "qemu:///system", "connect"),
    ],
)
def test_every_key_can_be_set_everywhere(load: Any, key: str, value: str, attribute: str) -> None:
    line = f'{key} = "{value}"'
    assert str(getattr(load(site=line), attribute)) == value
    assert str(getattr(load(user=line), attribute)) == value
    assert str(getattr(load(**{f"VMRUN_{key.upper()}": value}), attribute)) == value


def test_numbers_need_no_quotes(load: Any) -> None:
    found = load(user="cpus = 1.5\npids_limit = 64\nmemory = 67108864")
    assert (found.cpus, found.pids_limit, found.memory) == ("1.5", "64", "67108864")


# The floor.


@pytest.mark.parametrize("site", ProfileName)
@pytest.mark.parametrize("user", ProfileName)
def test_a_user_can_raise_the_floor_but_not_lower_it(
    load: Any, site: ProfileName, user: ProfileName
) -> None:
    order = list(ProfileName)
    files = (f'minimum_profile = "{site}"', f'minimum_profile = "{user}"')
    if order.index(user) >= order.index(site):
        assert load(*files).floor is user
    else:
        with pytest.raises(SettingsError, match=f"minimum_profile {user}.*{site}") as caught:
            load(*files)
        assert caught.value.hint


def test_the_environment_cannot_lower_the_floor(load: Any) -> None:
    found = load('minimum_profile = "healthcare"', VMRUN_MINIMUM_PROFILE="baseline")
    assert found.floor is ProfileName.HEALTHCARE


def test_another_home_cannot_lower_the_floor(load: Any, tmp_path: Path) -> None:
    other = tmp_path / "other" / "vmrun"
    other.mkdir(parents=True)
    (other / "config.toml").write_text('minimum_profile = "baseline"')
    with pytest.raises(SettingsError, match="below this site's"):
        load('minimum_profile = "restricted"', XDG_CONFIG_HOME=str(other.parent))


def test_a_laxer_profile_leaves_the_floor(load: Any) -> None:
    """Admission then refuses it."""
    found = load('minimum_profile = "restricted"', 'profile = "baseline"')
    assert (found.profile, found.floor) == (ProfileName.BASELINE, ProfileName.RESTRICTED)


# Bad files.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory_limit = 1", "unknown key 'memory_limit'"),
        ("[run]\nmemory = 1", "unknown key 'run'"),
        ("memory = true", "memory must be a string or a number"),
        ("memory = []", "memory must be a string or a number"),
        ("memory = 1979-05-27", "memory must be a string or a number"),
        ("[memory]\nx = 1", "memory must be a string or a number"),
        ("memory = ", "config.toml: "),
        ("memory = 1\nmemory = 2", "config.toml: "),
        ("\x00", "config.toml: "),
        ('profile = "lax"', "no profile 'lax'"),
        ('profile = ""', "no profile ''"),
        ('minimum_profile = "lax"', "no profile 'lax'"),
        ('engine = "podman"', "no engine 'podman'"),
        ('engine = ""', "no engine ''"),
        ('state_dir = "/a\\u0000b"', "state_dir"),
    ],
)
@pytest.mark.parametrize("which", ["site", "user"])
def test_a_bad_file_is_named_with_what_is_wrong(
    load: Any, which: str, text: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**{which: text})
    assert said in caught.value.message
    assert caught.value.hint


def test_what_is_not_utf_8(load: Any, tmp_path: Path) -> None:
    load()
    (tmp_path / "etc" / "config.toml").write_bytes(b"memory = '\xff'")
    with pytest.raises(SettingsError, match=r"config\.toml"):
        load_settings({"HOME": str(tmp_path / "home")})


def test_a_file_that_cannot_be_read(load: Any, tmp_path: Path) -> None:
    """A site's floor must not vanish because its file cannot be read."""
    load()
    (tmp_path / "etc" / "config.toml").mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings({"HOME": str(tmp_path / "home")})


@pytest.mark.parametrize("variable", ["VMRUN_PROFILE", "VMRUN_ENGINE"])
@pytest.mark.parametrize("value", ["", "nonsense", "RESTRICTED "])
def test_a_bad_variable(load: Any, variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=repr(value)):
        load(**{variable: value})


# Directories.


def test_the_state_directory(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = load(user='state_dir = "/a"', VMRUN_STATE_DIR="/b").directories
    assert (found.guests, found.cache) == (Path("/b/guests"), Path("/b/cache"))
    assert found.bases == (Path("/b/bases"), Path("/var/lib/vmrun/bases"))

    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load().directories.bases == (Path("/var/lib/vmrun/bases"),)
    assert load(VMRUN_STATE_DIR="").directories.guests == Path("/var/lib/vmrun/guests")

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    home = tmp_path / "home"
    assert load().directories.guests == home / ".local/state/vmrun/guests"
    assert load(XDG_STATE_HOME="/x").directories.guests == Path("/x/vmrun/guests")
    assert load().directories.bases[1] == Path("/var/lib/vmrun/bases")


def test_a_relative_state_directory_is_made_absolute(load: Any) -> None:
    assert load(VMRUN_STATE_DIR="x").directories.guests == Path.cwd() / "x" / "guests"
