"""What happened, for good: an append-only record whose entries are chained by their hashes."""
