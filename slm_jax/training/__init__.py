"""State, loop, checkpoints and partitioning."""
