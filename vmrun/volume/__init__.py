"""Data that outlives a guest, or must not: encrypted volumes, scratch, host directories."""
