"""``python -m tests.faults.command``: vmrun, with a fault in it if the environment asks for one."""

from __future__ import annotations

from tests.faults.point import prepare

if __name__ == "__main__":
    prepare("command")
    from vmrun.cli.main import main

    main()
