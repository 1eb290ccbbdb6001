"""Data: shards in object storage, their manifest, the order of rows, the cache and the stream of batches."""
