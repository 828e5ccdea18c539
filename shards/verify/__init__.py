"""Verifies a dataset: every byte against its hash, every sample decoded, every index against the tars."""
