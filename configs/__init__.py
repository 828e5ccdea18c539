"""Typed configuration: one YAML per experiment in this folder, and the code that reads them."""
