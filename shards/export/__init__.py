"""Exports a dataset in the formats of other projects: `python -m shards.export FORMAT ROOT OUT`."""
