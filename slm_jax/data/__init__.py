"""From sources of recordings and text to batches."""
