"""Common Voice, any release, as Mozilla packs it: FOLDER/{language}/{train,dev,test}.tsv, clips/.

    common_voice_asr_fr …   common_voice_ctc_fr …

The folder is `slm_jax.tasks.common_voice.corpus.folder` in gin. (TFDS has a `common_voice` as well,
which stores samples without their rate: clips are recorded at several, so it is not used.)
"""

import csv
import dataclasses
import pathlib
from collections.abc import Iterator

import seqio

import gin
from slm_jax import paths
from slm_jax.data import languages, manifests
from slm_jax.tasks import registry

_HOME = 'the Mozilla Data Collective, https://mozilladatacollective.com (it alone, since October 2025; sign in)'
_FILES = {'train': 'train.tsv', 'validation': 'dev.tsv', 'test': 'test.tsv'}
_VARIANTS = (
    'fy-NL',
    'ga-IE',
    'hy-AM',
    'ne-NP',
    'nn-NO',
    'pa-IN',
    'rm-sursilv',
    'rm-vallader',
    'sv-SE',
    'zh-CN',
    'zh-HK',
    'zh-TW',
)
LANGUAGES = tuple(sorted({*languages.NAMES, *_VARIANTS} - {v.split('-')[0] for v in _VARIANTS}))


@gin.configurable
def corpus(folder: str = '') -> pathlib.Path:
    """The folder with one sub-folder a language.

    Raises:
        FileNotFoundError: gin has not named it.
    """
    if not folder:
        raise FileNotFoundError(
            f'Common Voice has no folder: download the languages from {_HOME}, unpack them into '
            'FOLDER/LANGUAGE, and give --gin.slm_jax.tasks.common_voice.corpus.folder=FOLDER'
        )
    return paths.path(folder)


@dataclasses.dataclass(frozen=True)
class _Clips(manifests.Source):
    lang: str

    def path(self, split: str) -> pathlib.Path:
        return corpus() / self.lang / _FILES[split]

    def examples(self, split: str) -> Iterator[dict[str, str]]:
        path = self.path(split)
        if not path.exists():
            raise FileNotFoundError(
                f'{path} is missing: download {self.lang} of Common Voice from {_HOME}, and unpack it there.'
            )
        try:
            with path.open(encoding='utf-8-sig', newline='') as file:
                rows = csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE)
                if not {'path', 'sentence'} <= {*(rows.fieldnames or ())}:
                    raise ValueError('it has no columns "path" and "sentence"')
                for number, row in enumerate(rows, 2):
                    yield dict.fromkeys(manifests.FIELDS, '') | {
                        'id': f'common_voice/{self.lang}/{row["path"]}',
                        'origin': f'{path}:{number}',
                        'audio': str(path.parent / 'clips' / row['path']),
                        'text': row['sentence'] or '',
                        'lang': self.lang,
                        'translations': '{}',
                    }
        except (ValueError, csv.Error) as error:
            raise ValueError(f'{path}: no table of Common Voice ({error}). Unpack it again.') from error


for _lang in LANGUAGES:
    for _kind in ('asr', 'ctc'):
        registry.speech_task(
            f'common_voice_{_kind}_{_lang}'.replace('-', '_'),
            seqio.FunctionDataSource(_Clips(_lang), splits=tuple(_FILES)),
            _kind,
        )
