"""SeqIO registrations: tasks and mixtures, nothing else. Importing this package registers them.

A new corpus is a new file here. `manifest` and `mixture` register what a person's gin file names.
"""

import slm_jax.data.tensorflow_cpu  # isort: skip  before others load TensorFlow  # noqa: F401

import importlib
import pkgutil

from slm_jax.tasks.registry import hugging_face, manifest, mixture, speech_task, tars

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')

__all__ = ['hugging_face', 'manifest', 'mixture', 'speech_task', 'tars']
