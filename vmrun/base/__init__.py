"""Building guest bases, and finding and checking them on the host."""
