# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""CoVoST 2: Common Voice with translations, as a TFDS data set."""

from slm_jax.data.covost2.builder import Covost2

__all__ = ['Covost2']
