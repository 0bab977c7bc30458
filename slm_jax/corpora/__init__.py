"""Programs that make corpora: synthetic and spliced speech, texts, tokenizers, splits."""
