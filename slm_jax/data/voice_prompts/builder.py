"""TFDS builder `voice_prompts`: speech, its transcript, and its translation into four languages."""

import slm_jax.data.tensorflow_cpu  # isort: skip  before others load TensorFlow  # noqa: F401

import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
import soundfile
import tensorflow_datasets as tfds

from slm_jax.data import ctc_text
from slm_jax.data.voice_prompts import fetch

_BRACKETED = re.compile(r'[\[(<][^\])>]*[\])>]')
_STAGE_DIRECTIONS = ('(enfatico)',)  # the only one that does not end its line


def spoken_text(line: str) -> str:
    """What the voice says, out of a line as printed; '' where it is a sound and not speech.

    A line that is one bracket is a sound. A note in round brackets at the end ('IAX (note: does not
    say "2")') and a bracket without letters ('at [@]') are not spoken. Words bracketed within a
    sentence ('Il [suo] messaggio') are.
    """
    line = line.strip()
    if re.fullmatch(_BRACKETED.pattern + r'\.?', line):
        return ''
    line = re.sub(r'\s*\([^)]*\)\.?$', '', line)
    for note in _STAGE_DIRECTIONS:
        line = line.replace(note, '')
    line = _BRACKETED.sub(lambda m: m[0][1:-1] if re.search(r'\w', m[0]) else '', line)
    return ' '.join(line.split())


def splits_of(texts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The split of each prompt, the same in every language: no test sentence is trained on.

    A few prompts say what another says. One of these that would be held out while its twin, in any language, is
    trained on belongs to no split.

    Args:
        texts: what is spoken, by language and prompt.
    """
    found = {}
    for prompt in {prompt for spoken in texts.values() for prompt in spoken}:
        bucket = int(hashlib.md5(prompt.encode()).hexdigest(), 16) % 10
        found[prompt] = {0: 'test', 1: 'validation'}.get(bucket, 'train')
    trained = {
        (lang, ctc_text.normalize(text))
        for lang, spoken in texts.items()
        for prompt, text in spoken.items()
        if found[prompt] == 'train'
    }
    twins = {
        prompt
        for lang, spoken in texts.items()
        for prompt, text in spoken.items()
        if found[prompt] != 'train' and (lang, ctc_text.normalize(text)) in trained
    }
    return {prompt: split for prompt, split in found.items() if prompt not in twins}


def spoken_texts(directories: Mapping[str, pathlib.Path]) -> dict[str, dict[str, str]]:
    """What is spoken, by language and prompt, of the transcripts in the folders of the languages."""
    texts = {}
    for lang, directory in directories.items():
        lines = fetch.read_transcript(directory / f'core-sounds-{lang}.txt')
        texts[lang] = {key: text for key, line in lines.items() if (text := spoken_text(line))}
    return texts


class VoicePrompts(tfds.core.GeneratorBasedBuilder):
    """Asterisk's core sounds: telephone prompts, one professional voice a language."""

    VERSION = tfds.core.Version('1.2.0')
    RELEASE_NOTES = {
        '1.1.0': 'Asterisk core sounds 1.6.1; samples as bytes.',
        '1.2.0': 'No sentence is held out under one id and trained on under another.',
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description='Telephone prompts in English, Spanish, French, Italian and Russian, '
            'translated by people; 8 kHz. Licences: CC BY-SA 3.0 (en, es, fr, it), '
            'CC BY 3.0 (ru).',
            homepage='https://www.asterisksounds.org',
            features=tfds.features.FeaturesDict(
                {
                    'audio': tfds.features.Tensor(
                        shape=(None,),
                        dtype=np.int16,
                        encoding=tfds.features.Encoding.BYTES,
                        doc='8000 samples per second',
                    ),
                    'text': tfds.features.Text(),
                    'lang': tfds.features.Text(doc='ISO 639-1'),
                    'id': tfds.features.Text(doc='The prompt: shared by its translations.'),
                    'translations': {
                        lang: tfds.features.Text(doc="'' where there is none") for lang in fetch.LANGUAGES
                    },
                }
            ),
            supervised_keys=('audio', 'text'),
            citation='',
        )

    def _split_generators(self, dl_manager):
        directories = fetch.fetch(pathlib.Path(dl_manager.download_dir) / 'voice_prompts')
        return {split: self._generate_examples(directories, split) for split in ('train', 'validation', 'test')}

    def _generate_examples(self, directories, split) -> Iterator[tuple[str, dict]]:
        texts = spoken_texts(directories)
        splits = splits_of(texts)
        for lang, directory in directories.items():
            files = recordings(directory)
            for prompt, text in texts[lang].items():
                path = files.get(prompt) or files.get(prompt.lower())
                if path is None or splits.get(prompt) != split:
                    continue
                samples, rate = soundfile.read(path, dtype='int16')
                if rate != 8000 or samples.ndim != 1 or not len(samples):
                    raise fetch.FetchError(
                        f'{path}: {rate} Hz, shape {samples.shape}; mono speech '
                        'at 8000 Hz was expected. Remove its folder and rerun.'
                    )
                yield (
                    f'{lang}/{prompt}',
                    {
                        'audio': samples,
                        'text': text,
                        'lang': lang,
                        'id': prompt,
                        'translations': {to: texts[to].get(prompt, '') for to in texts},
                    },
                )


def recordings(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """{id: file}. A few ids are printed in another case than their file's: both are keys."""
    files = {path.relative_to(directory).with_suffix('').as_posix(): path for path in sorted(directory.rglob('*.wav'))}
    return {key.lower(): path for key, path in files.items()} | files
