"""Frozen pretrained parts: directories of parameters, a card and a tokenizer."""
