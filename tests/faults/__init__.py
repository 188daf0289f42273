"""Killing things on purpose, and counting what is left."""
