"""LibriSpeech (960 h of English audio books), as TFDS prepares it.

    librispeech_asr         all of it; validation and test are clean and other together
    librispeech_asr_clean   460 h, dev-clean, test-clean
    librispeech_asr_other   500 h, dev-other, test-other
    librispeech_asr_100     train-clean-100, dev-clean, test-clean
    librispeech_ctc…        the same for the speech encoder

TFDS needs `pip install slm_jax[corpora]` and ffmpeg to read the FLAC files.
"""

import functools

import slm_jax.data.tensorflow_cpu as tensorflow_cpu  # isort: skip  before others load TensorFlow

import seqio

from slm_jax.data import preprocessors
from slm_jax.tasks import registry

tf = tensorflow_cpu.tf

_CLEAN = {'train': 'train_clean100+train_clean360', 'validation': 'dev_clean', 'test': 'test_clean'}
_OTHER = {'train': 'train_other500', 'validation': 'dev_other', 'test': 'test_other'}
SUBSETS = {
    '': {split: f'{_CLEAN[split]}+{_OTHER[split]}' for split in _CLEAN},
    '_clean': _CLEAN,
    '_other': _OTHER,
    '_100': _CLEAN | {'train': 'train_clean100'},
}


def _fields(example):
    name = tf.strings.join(['librispeech/', example['id']])
    return {
        'id': name,
        'origin': name,
        'lang': tf.constant('en'),
        'samples': example['speech'],
        'text': tf.strings.lower(example['text']),
    }  # printed in capitals


for _subset, _splits in SUBSETS.items():
    for _kind in ('asr', 'ctc'):
        registry.speech_task(
            f'librispeech_{_kind}{_subset}',
            seqio.TfdsDataSource('librispeech/default:2.1.1', splits=_splits),
            _kind,
            before_cache=(
                preprocessors.canonical_map(_fields),
                functools.partial(preprocessors.decode_samples, rate=16000),
            ),
        )
