"""Two builds of a base from the same packages have the same digest, wherever they are made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmrun.base import store
from vmrun.base.build import build_base
from vmrun.base.tools import require_tools
from vmrun.model.base import Flavour
from vmrun.model.errors import BaseError

CACHE = Path(os.environ.get("VMRUN_BASE_CACHE", "/var/cache/vmrun/base"))


@pytest.mark.guest
@pytest.mark.parametrize("flavour", list(Flavour))
def test_two_builds_have_one_digest(tmp_path: Path, flavour: Flavour) -> None:
    try:
        require_tools()
    except BaseError as error:
        pytest.skip(error.message)
    umask = os.umask(0o077)
    try:
        first = build_base(flavour, tmp_path / "first", CACHE)
        os.umask(0o022)
        steps: list[tuple[str, float]] = []
        second = build_base(
            flavour,
            tmp_path / "a longer path" / "second",
            CACHE,
            on_step=lambda name, fraction: steps.append((name, fraction)),
        )
    finally:
        os.umask(umask)
    assert first.digest == second.digest
    store.verify_base(first)
    store.verify_base(second)
    assert [fraction for _, fraction in steps] == sorted(fraction for _, fraction in steps)
    assert steps[-1] == ("done", 1.0)
