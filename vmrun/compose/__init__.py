"""Compose files: read strictly, put in order. Pure, but for reading the file."""
