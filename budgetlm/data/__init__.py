"""Text in, batches out: corpus -> documents -> tokens on disk -> batches."""
