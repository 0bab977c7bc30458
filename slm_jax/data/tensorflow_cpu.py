# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""TensorFlow as the input pipeline only: `from slm_jax.data.tensorflow_cpu import tf`.

Accelerators belong to JAX; TensorFlow would take all of a GPU's memory at its first operation.
"""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import tensorflow as tf  # noqa: E402  the line above must come first

for _kind in ('GPU', 'TPU'):
    try:
        tf.config.set_visible_devices([], _kind)
    except RuntimeError:  # TensorFlow was in use before we were imported; leave its choice alone
        pass
