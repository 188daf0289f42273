"""Engines by name; each adapter is imported only when it is chosen."""

from __future__ import annotations

from pathlib import Path

from vmrun.model.workload import EngineName
from vmrun.run.ports import Engine


def make_engine(name: EngineName, *, scratch: Path) -> Engine:
    """The engine ``name``, for one run; ``scratch`` is a private directory on the host."""
    if name is EngineName.DOCKER:
        from vmrun.engine.docker import DockerEngine

        return DockerEngine(scratch=scratch)
    from vmrun.engine.crun import CrunEngine

    return CrunEngine()
