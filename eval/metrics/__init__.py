"""Metrics and their uncertainty, as pure functions of arrays."""
