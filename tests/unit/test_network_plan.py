"""The wire of a container as it is planned, and the files by which it learns of it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine_samples import workload
from vmrun.model.errors import UsageError
from vmrun.model.network import Allow, NetworkPlan, Publish
from vmrun.network.wire import PORTS_MAX, attach_command, relay_command
from vmrun.planning.network import lay_command, network_files, plan_network, remove_command

RUN = "0123456789ab"
SHARED = NetworkPlan(
    network="shop_default",
    address="10.88.7.3",
    gateway="10.88.7.1",
    prefix=24,
    names=(("web", "10.88.7.3"), ("db", "10.88.7.4")),
)
