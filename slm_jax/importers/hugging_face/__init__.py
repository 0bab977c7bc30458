"""Checkpoints in the layout of Hugging Face's `transformers`; one file per family."""
