"""A guest for tests that need a connection and nothing more, in a process of its own (one
process can open one embedded root). Prints one JSON line when the guest is ready; tears it down
when its stdin ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vmrun.base.store import find_base
from vmrun.channel.control import Identity
from vmrun.channel.keys import ClientKey
from vmrun.channel.ssh import SshConnection
from vmrun.channel.unix import connect_unix
from vmrun.hypervisor.guest import Hypervisor
from vmrun.model.plan import EMBEDDED
from vmrun.model.quantity import MIB
from vmrun.planning.domain_xml import Sockets, domain_xml
from vmrun.planning.memory import plan_memory
from vmrun.planning.planner import RunIdentity, plan_guest
from vmrun.run.accelerator import host_facts
from vmrun.run.provision import create_guest, wait_for_hello
from vmrun.run.state import claim
from vmrun.run.teardown import Teardown, remove_guest
from vmrun.settings import load_settings

_START_SECONDS = 240


@dataclass(slots=True)
class GuestProcess:
    """A running guest; :meth:`connect` may be called once per SSH port."""

    process: subprocess.Popen[str]
    directory: Path
    host_key: str
    client_key: ClientKey

    @classmethod
    def start(cls, flavour: str, memory_mib: int) -> GuestProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.guest_process", flavour, str(memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"no {flavour} guest: its process ended with {process.wait(30)}"
        answer = json.loads(line)
        key = ClientKey(answer["client_key"])
        return cls(process, Path(answer["directory"]), answer["host_key"], key)

    def connect(self, port: int = 0) -> SshConnection:
        return SshConnection.open(
            connect_unix(self.directory / f"ssh.{port}", time.monotonic() + 10),
            client_key=self.client_key,
            host_key=self.host_key,
            timeout=60,
        )

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        assert not self.directory.exists()


def serve(flavour: str, memory_mib: int) -> None:
    directories = load_settings().directories
    base = find_base(directories.bases, flavour)
    facts = host_facts(base, directories, connect=EMBEDDED)
    directory = claim(directories, name=None, tenant="test", connect=EMBEDDED)
    teardown = Teardown()
    teardown.add("guest directory", lambda: remove_guest(directory))
    try:
        memory = plan_memory(
            workload=memory_mib * MIB,
            unpacked=0,
            blobs=(),
            flavour=base.flavour,
            accelerator=facts.accelerator,
        )
        intent = directory.intent
        identity = RunIdentity(intent.run_id, intent.uuid, intent.slot)
        guest = replace(plan_guest(base, facts, memory, identity, cpus=1), boot_deadline=200.0)
        sockets = Sockets.within(directory.path, ssh_ports=guest.ssh_ports)
        hypervisor = Hypervisor.open(
            EMBEDDED, root=directory.hypervisor_root, cache=directories.cache / "capabilities"
        )
        xml = domain_xml(guest, base, sockets, metadata={"run": intent.run_id})
        provisioned = create_guest(hypervisor, xml, guest, sockets, teardown)
        wait_for_hello(provisioned, guest.boot_deadline)
        key = ClientKey.generate()
        host_key = provisioned.control.identify(
            Identity("test", os.urandom(64), key.public_line, guest.lease),
            time.monotonic() + _START_SECONDS,
        )
        provisioned.control.keep_lease(guest.lease)
        answer = {
            "directory": str(directory.path),
            "host_key": host_key,
            "client_key": key.pem,
        }
        print(json.dumps(answer), flush=True)
        sys.stdin.read()
        provisioned.control.close()
    finally:
        teardown.run()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
