"""Generation over one cached step of a language model."""

from slm_jax.decoding.ctc import with_ctc
from slm_jax.decoding.search import DecodeConfig, beam_search, decode, limited, truncate

__all__ = ['DecodeConfig', 'beam_search', 'decode', 'limited', 'truncate', 'with_ctc']
