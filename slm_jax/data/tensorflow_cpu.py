"""TensorFlow as the input pipeline only: `from slm_jax.data.tensorflow_cpu import tf`.

Accelerators belong to JAX; TensorFlow would take all of a GPU's memory at its first operation. What
it says about drivers and CPU flags while it is loaded, before it reads any log level, is kept off
the terminal; so this comes before other imports of it (by seqio, tensorflow_datasets).
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what is written to the standard error; lets it out if something goes wrong."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


with _quiet():
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  seqio loads it, and it is as talkative

    for _kind in ('GPU', 'TPU'):
        try:
            tf.config.set_visible_devices([], _kind)
        except RuntimeError:  # in use before we were imported: leave its choice alone
            pass
    tf.constant(0)
