"""The checks of ``vmrun doctor``: what is read from the host, and what it means (pure)."""
