"""``python -m tests.faults.supervisor``: a supervisor, with a fault in it if asked for."""

from __future__ import annotations

from tests.faults.point import prepare

if __name__ == "__main__":
    prepare("supervisor")
    from vmrun.supervisor.__main__ import main

    main()
