"""CoVoST 2: Common Voice with translations, as a TFDS data set."""

from slm_jax.data.covost2.builder import Covost2

__all__ = ['Covost2']
