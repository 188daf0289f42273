"""Engines by name; each adapter is imported only when it is chosen."""

from __future__ import annotations

from vmrun.model.workload import EngineName
from vmrun.run.ports import Engine


def make_engine(name: EngineName) -> Engine:
    """The engine ``name``, for one run."""
    if name is EngineName.DOCKER:
        from vmrun.engine.docker import DockerEngine

        return DockerEngine()
    from vmrun.engine.crun import CrunEngine

    return CrunEngine()
