"""TFDS builder `covost2`: translation of Common Voice speech, 21 languages to English and 15 from.

The translations are downloaded (arXiv 2007.10310, CC0). The speech is Common Voice 4. Since October 2025 Common Voice
is had at the Mozilla Data Collective alone, by people who are signed in: put the language's folder (`clips/`,
`validated.tsv`) under MANUAL_DIR/{language}, MANUAL_DIR being TFDS's download folder + `/manual`.
"""

import csv
import pathlib
from collections.abc import Iterator

import slm_jax.data.tensorflow_cpu as tensorflow_cpu  # isort: skip  before others load TensorFlow

import tensorflow_datasets as tfds

from slm_jax.data import notices

URL = 'https://dl.fbaipublicfiles.com/covost/covost_v2.{source}_{target}.tsv.tar.gz'
COMMON_VOICE = 'https://mozilladatacollective.com'
TO_ENGLISH = (
    'fr',
    'de',
    'es',
    'ca',
    'it',
    'ru',
    'zh-CN',
    'pt',
    'fa',
    'et',
    'mn',
    'nl',
    'tr',
    'ar',
    'sv-SE',
    'lv',
    'sl',
    'ta',
    'ja',
    'id',
    'cy',
)
FROM_ENGLISH = (
    'de',
    'ca',
    'zh-CN',
    'fa',
    'et',
    'mn',
    'tr',
    'ar',
    'sv-SE',
    'lv',
    'sl',
    'ta',
    'ja',
    'id',
    'cy',
)
PAIRS = (*((source, 'en') for source in TO_ENGLISH), *(('en', target) for target in FROM_ENGLISH))
# split of ours -> `split` of the table; 'train_covost' are sentences that Common Voice held out
_SPLITS = {'train': ('train', 'train_covost'), 'validation': ('dev',), 'test': ('test',)}


def _rows(path: pathlib.Path) -> Iterator[dict[str, str]]:
    with open(path, encoding='utf-8', newline='') as file:
        yield from csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE)


class Covost2(tfds.core.GeneratorBasedBuilder):
    """One configuration a pair: `covost2/fr_en`."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=f'{source}_{target}') for source, target in PAIRS]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Sign in at the Mozilla Data Collective, which alone has Common Voice since October 2025 '
        f'({COMMON_VOICE}), download the language (Corpus 4, or a later one: clips keep their names), and unpack it so '
        'that MANUAL_DIR/LANGUAGE holds clips/ and validated.tsv.'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description='CoVoST 2: Common Voice with translations.',
            homepage='https://github.com/facebookresearch/covost',
            features=tfds.features.FeaturesDict(
                {
                    'audio': tensorflow_cpu.tf.string,  # the MP3 file as it is
                    'text': tfds.features.Text(),
                    'translation': tfds.features.Text(),
                    'id': tfds.features.Text(doc='name of the clip'),
                    'client_id': tfds.features.Text(doc='the speaker'),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        source, target = self.builder_config.name.split('_')
        folder = pathlib.Path(dl_manager.manual_dir) / source
        if not (folder / 'validated.tsv').exists():
            raise FileNotFoundError(f'{folder} holds no validated.tsv. ' + self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        unpacked = dl_manager.download_and_extract(URL.format(source=source, target=target))
        table = next(pathlib.Path(unpacked).rglob(f'covost_v2.{source}_{target}.tsv'))
        return {split: self._generate_examples(folder, table, names) for split, names in _SPLITS.items()}

    def _generate_examples(self, folder: pathlib.Path, table: pathlib.Path, names: tuple[str, ...]):
        translations = {row['path']: row['translation'] for row in _rows(table) if row['split'] in names}
        there = 0
        for row in _rows(folder / 'validated.tsv'):
            path = row['path']
            if path in translations:
                there += 1
                yield (
                    path,
                    {
                        'audio': (folder / 'clips' / path).read_bytes(),
                        'text': row['sentence'],
                        'translation': translations[path],
                        'id': path,
                        'client_id': row['client_id'],
                    },
                )
        if there < len(translations):
            notices.say(
                f'covost2/{self.builder_config.name} {names[0]}: {len(translations) - there} of {len(translations)} '
                f'translated clips are left out: {folder / "validated.tsv"}, of another release than 4, has them not.'
            )
