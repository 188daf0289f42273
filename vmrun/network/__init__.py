"""The network of guests that have no network card: streams over their SSH connection."""
