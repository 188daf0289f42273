"""SSH to guests, and the control port beside it.

paramiko imports invoke for one feature, conditions in ssh_config files, which nothing here reads;
it does without where invoke is missing. So it is missing while paramiko is imported: that takes
half of the time and 6 MiB less, which every supervisor would hold for as long as its guest lives.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_masked = "invoke" not in _modules
if _masked:
    _modules["invoke"] = None
import paramiko as _paramiko  # noqa: E402, F401

if _masked:
    del _modules["invoke"]
