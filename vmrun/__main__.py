"""``python -m vmrun``."""

from vmrun.cli.main import main

main()
