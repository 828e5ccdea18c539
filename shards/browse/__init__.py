"""Pages to look at a dataset with: `python -m shards.browse ROOT`."""
