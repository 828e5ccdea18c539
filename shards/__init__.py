"""The shard format and its loader: schema, writer, index, sources, decoding, batches, verification, inspection."""
