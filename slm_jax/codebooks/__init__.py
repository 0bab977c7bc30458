"""Discrete units of speech and images: how they are fitted, how they are heard and seen again, and files of them."""
