"""Orbax in s3://: it has what it takes, TensorStore's driver and commits by a file, and knows gs:// alone by name."""

import functools
import pathlib

from slm_jax import paths


def teach_orbax(directory: pathlib.Path) -> None:
    """Lets Orbax treat s3:// as it treats gs://, before it is given such a directory.

    Raises:
        StorageError: this version of Orbax is built otherwise.
    """
    if str(directory).startswith('s3://'):
        _teach()


@functools.cache
def _teach() -> None:
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    try:
        of_gcs, normalize = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path
        gcs_utils._GCS_PATH_PREFIX, tensorstore_utils._use_gcs_driver  # noqa: B018
    except AttributeError as error:
        raise paths.StorageError(
            f'orbax-checkpoint {ocp.__version__} cannot be taught s3://: give gs:// or a local path, or install '
            'orbax-checkpoint 0.12.8.'
        ) from error

    def kvstore(directory: str) -> dict:
        if not directory.startswith('s3://'):
            return of_gcs(directory)
        bucket, _, path = directory[5:].partition('/')
        known = paths.kvstore(f's3://{bucket}')
        return {'driver': 's3', 'bucket': bucket, **(known if isinstance(known, dict) else {}), 'path': path}

    gcs_utils._GCS_PATH_PREFIX = ('gs://', 's3://')
    gcs_utils.get_kvstore_for_gcs = kvstore
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(('gs://', 's3://'))
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace('s3:/', 's3://')
