"""From text files to batches: documents, shards, samples."""
