"""Secrets are read when a run starts, and shown nowhere."""

from __future__ import annotations

import os
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import pytest

from vmrun.model.errors import StateError, UsageError
from vmrun.model.storage import Secret
from vmrun.volume.pack import END, Owner, pack_secrets
from vmrun.volume.secrets import LARGEST, SecretBytes, read_secrets

TOKEN = b"s3cr3t-\xff\x00-token\n"


def read(*secrets: Secret, environment: dict[bytes, bytes] | None = None) -> list[bytes]:
    found = read_secrets(secrets, environment or {}, note=lambda text: pytest.fail(text))
    return [secret.data for secret in found]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_bytes(TOKEN)
    path.chmod(0o600)
    return path


def test_every_byte_of_a_file_and_of_a_variable(file: Path) -> None:
    secrets = (Secret("a", source=file), Secret("b", variable="TOKEN"))
    assert read(*secrets, environment={b"TOKEN": b"x\n\xff"}) == [TOKEN, b"x\n\xff"]


def test_a_pipe_is_as_good_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(TOKEN,))
    writer.start()
    assert read(Secret("a", source=path)) == [TOKEN]
    writer.join()


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_may_read_is_told_without_its_content(file: Path, mode: int) -> None:
    file.chmod(mode)
    said: list[str] = []
    read_secrets([Secret("a", source=file)], {}, note=said.append)
    assert said == [f"secret 'a': {file} can be read by others: chmod 600 {file}"]


def test_a_variable_that_is_not_set_is_bad_usage() -> None:
    with pytest.raises(UsageError, match="the environment has no TOKEN"):
        read(Secret("a", variable="TOKEN"))


def test_an_empty_variable_is_an_empty_secret() -> None:
    assert read(Secret("a", variable="TOKEN"), environment={b"TOKEN": b""}) == [b""]


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(StateError):
            read(Secret("a", source=path))


def test_a_megabyte_is_the_most(file: Path) -> None:
    file.write_bytes(bytes(LARGEST))
    assert len(read(Secret("a", source=file))[0]) == LARGEST
    file.write_bytes(bytes(LARGEST + 1))
    with pytest.raises(StateError, match="larger than 1 MiB"):
        read(Secret("a", source=file))


def test_its_bytes_are_in_no_representation() -> None:
    secret = SecretBytes("a", TOKEN)
    assert "t0ken" not in repr(secret)
    assert "s3cr3t" not in repr(secret) + str(secret) + f"{[secret]}"


def test_each_is_for_the_containers_user_alone() -> None:
    secrets = (SecretBytes("a", TOKEN), SecretBytes("b", b""))
    archive = b"".join(pack_secrets(secrets, "secrets", Owner(65532, 65533))) + END
    with tarfile.open(fileobj=BytesIO(archive)) as found:
        members = {member.name: member for member in found.getmembers()}
        assert list(members) == ["secrets", "secrets/a", "secrets/b"]
        assert {(item.uid, item.gid) for item in members.values()} == {(65532, 65533)}
        assert [item.mode for item in members.values()] == [0o500, 0o400, 0o400]
        content = found.extractfile("secrets/a")
        assert content is not None
        assert content.read() == TOKEN
