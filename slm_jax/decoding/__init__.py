"""Generation over one cached step of a language model."""

from slm_jax.decoding.ctc import frame_log_probs, with_ctc
from slm_jax.decoding.search import DecodeConfig, Search, beam_search, begun, decode, limited, truncate, within

__all__ = [
    'DecodeConfig', 'Search', 'beam_search', 'begun', 'decode', 'frame_log_probs', 'limited', 'truncate', 'with_ctc',
    'within',
]  # fmt: skip
