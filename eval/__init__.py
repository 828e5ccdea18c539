"""Every benchmark, computed from shards."""
