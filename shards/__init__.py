"""The shard format: schema, writer, index, verification and inspection; nothing here imports other rooms."""
