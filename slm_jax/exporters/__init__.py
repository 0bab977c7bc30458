"""What was trained, in the formats of others; the program is `slm-jax export` (`slm_jax/export.py`)."""


class ExportError(ValueError):
    """Something trained that the format asked for cannot hold; names it and the remedy."""
