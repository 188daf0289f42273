"""One process owns a live guest: it renews its lease, keeps its logs and answers for it."""
