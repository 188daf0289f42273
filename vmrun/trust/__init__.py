"""Signatures, attestations and the decision whether an image may run."""
