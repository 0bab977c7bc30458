"""Every family of speech tasks through SeqIO's own `get_dataset`, on mocked data sets."""

import contextlib
import io

import numpy as np
import pytest
import seqio
import soundfile
import tensorflow_datasets as tfds
from seqio import test_utils

from slm_jax import tasks  # noqa: F401  registers tasks
from slm_jax.data import cache
from slm_jax.data.tensorflow_cpu import tf
from slm_jax.tasks import common_voice, fleurs, registry

SAMPLES = np.arange(-400, 400, dtype=np.int16)


def flac(samples=SAMPLES, rate=16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format='FLAC')
    return buffer.getvalue()


@contextlib.contextmanager
def mocked(examples, by_config=False):
    """TFDS gives these examples, whatever the split: {configuration: examples} if so asked; three
    random ones of its own if None."""

    def as_dataset(self, *args, decoders=None, **kwargs):
        chosen = examples[self.builder_config.name] if by_config else examples
        return tf.data.Dataset.from_generator(
            lambda: iter(chosen),
            output_signature=tf.nest.map_structure(
                lambda v: tf.TensorSpec(
                    [None] * np.ndim(v),
                    tf.as_dtype(np.asarray(v).dtype) if np.ndim(v) or not isinstance(v, (str, bytes)) else tf.string,
                ),
                chosen[0],
            ),
        )

    seqio.utils.LazyTfdsLoader._MEMOIZED_BUILDERS.clear()
    with (
        tfds.testing.mock_data(num_examples=3, as_dataset_fn=examples and as_dataset),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(seqio.TfdsDataSource, 'num_input_examples', lambda self, split: 3)
        yield
    seqio.utils.LazyTfdsLoader._MEMOIZED_BUILDERS.clear()


def expected(vocabulary, inputs: str, targets: str, ctc=False, **rest) -> dict:
    def tokens(text):
        return [*vocabulary.encode(text), *([] if ctc else [1])] if text or not ctc else []

    return {
        'inputs': tokens(inputs),
        'targets': tokens(targets),
        'inputs_pretokenized': inputs,
        'targets_pretokenized': targets,
        **rest,
    }


def check(task: str, wanted: list[dict], split='train'):
    """The task's examples have these features, shuffled or not, in the first of its wordings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('zlib.crc32', lambda id_: 0)  # what picks the wording where no loader does
        for shuffle in (False, True):
            dataset = seqio.get_mixture_or_task(task).get_dataset(
                sequence_length=None, split=split, shuffle=shuffle, seed=0
            )
            names = wanted[0].keys()
            dataset = dataset.map(lambda e, names=names: {k: e[k] for k in names})
            if shuffle:
                assert sorted(list(e['targets']) for e in dataset.as_numpy_iterator()) == sorted(
                    w['targets'] for w in wanted
                )
            else:
                test_utils.assert_dataset(dataset, wanted)


def prompt(lang, id_, text, **translations):
    return {
        'audio': SAMPLES[::2],
        'text': text,
        'lang': lang,
        'id': id_,
        'translations': {to: translations.get(to, '') for to in ('en', 'es', 'fr', 'it', 'ru')},
    }


PROMPTS = [
    prompt('fr', 'hello', 'Bonjour !', fr='Bonjour !', en='Hello.'),
    prompt('en', 'hello', 'Hello.', fr='Bonjour !', en='Hello.'),
    prompt('fr', 'dièse', "L'étoile.", fr="L'étoile."),
]


def test_voice_prompts(vocabulary):
    with mocked(PROMPTS):
        check(
            'voice_prompts_asr_fr',
            [
                expected(
                    vocabulary,
                    'Transcribe the French speech.',
                    'Bonjour !',
                    lang='fr',
                    id='voice_prompts/fr/hello',
                    error='',
                ),
                expected(
                    vocabulary,
                    'Transcribe the French speech.',
                    "L'étoile.",
                    lang='fr',
                    id='voice_prompts/fr/dièse',
                    error='',
                ),
            ],
        )
        check(
            'voice_prompts_ast_fr_en',
            [expected(vocabulary, 'Translate this speech to English.', 'Hello.', target_lang='en')],
        )
        check(
            'voice_prompts_ast_en_fr',
            [expected(vocabulary, 'Translate this speech to French.', 'Bonjour !')],
        )
        check(
            'voice_prompts_ctc_fr',
            [
                expected(vocabulary, '', 'bonjour', ctc=True),
                expected(vocabulary, '', "l'étoile", ctc=True),
            ],
        )
        task = seqio.get_mixture_or_task('voice_prompts_asr_en')
        (example,) = task.get_dataset(split='test', shuffle=False).as_numpy_iterator()
        assert example['speech'].dtype == np.int16 and len(example['speech']) == len(SAMPLES)


@pytest.mark.parametrize(
    'mixture, parts',
    [
        ('voice_prompts_asr', 5),
        ('voice_prompts_ast', 20),
        ('voice_prompts_ast_to_en', 4),
        ('voice_prompts', 25),
        ('voice_prompts_ctc', 5),
        ('fleurs_asr', 102),
        ('fleurs_ast_to_en', 101),
        ('covost2_ast_to_en', 21),
        ('covost2_ast_from_en', 15),
    ],
)
def test_mixtures(mixture, parts):
    assert len(seqio.get_subtasks(seqio.get_mixture_or_task(mixture))) == parts


def test_a_mixture_is_read_by_seqio(vocabulary):
    with mocked(PROMPTS):
        mixture = seqio.get_mixture_or_task('voice_prompts_ctc')
        dataset = seqio.Mixture('two', [(t, 1) for t in mixture.tasks if t.name[-2:] in ('en', 'fr')]).get_dataset(
            {'inputs': 64, 'targets': 64}, split='train', shuffle=False, num_epochs=1
        )
        assert set(next(dataset.as_numpy_iterator())) == {'speech', 'inputs', 'targets'}


def test_librispeech(vocabulary):
    examples = [{'speech': SAMPLES, 'text': 'HE HOPED', 'speaker_id': 1, 'chapter_id': 2, 'id': '1-2-3'}]
    with mocked(examples):
        check(
            'librispeech_asr_clean',
            [
                expected(
                    vocabulary,
                    'Transcribe the English speech.',
                    'he hoped',
                    lang='en',
                    id='librispeech/1-2-3',
                    speech=SAMPLES,
                )
            ],
        )
        check('librispeech_ctc', [expected(vocabulary, '', 'he hoped', ctc=True)], split='test')
    assert set(seqio.get_mixture_or_task('librispeech_asr').splits) == {
        'train',
        'validation',
        'test',
    }


@pytest.mark.parametrize('task', ['librispeech_asr_100', 'fleurs_ctc_fr_fr', 'voice_prompts_asr_it'])
def test_features_of_tfds_are_the_ones_we_read(vocabulary, task):
    """TFDS's own random examples: nothing that we read is missing or of another type."""
    with mocked(None):
        examples = list(seqio.get_mixture_or_task(task).get_dataset(split='train', shuffle=False).as_numpy_iterator())
    assert len(examples) == (0 if 'voice' in task else 3)  # no random language is Italian
    assert all(len(example['speech']) and len(example['targets']) for example in examples)


def sentence(id_, text, file='a.wav'):
    return {
        'id': id_,
        'num_samples': 800,
        'path': f'x/{file}',
        'audio': SAMPLES.astype(np.int64),
        'transcription': text.lower(),
        'raw_transcription': text,
        'gender': 0,
        'lang_id': 0,
        'language': 'French',
        'lang_group_id': 0,
    }


def test_fleurs(vocabulary):
    fleurs._sentences.cache_clear()
    with mocked(
        {
            'fleurs.fr_fr': [
                sentence(7, 'Bonjour.'),
                sentence(7, 'Bonjour.', 'b.wav'),
                sentence(9, 'Merci.'),
            ],
            'fleurs.en_us': [sentence(7, 'Hello.')],
            'fleurs.de_de': [sentence(9, 'Danke.')],
        },
        by_config=True,
    ):
        assert fleurs._sentences('en_us') == {'7': 'Hello.'}  # TFDS's mocks hold in this thread only
        assert fleurs._sentences('de_de') == {'9': 'Danke.'}
        asked = 'Transcribe the French speech.'
        check(
            'fleurs_asr_fr_fr',
            [
                expected(vocabulary, asked, 'Bonjour.', id='fleurs/fr_fr/7/a.wav', speech=SAMPLES),
                expected(vocabulary, asked, 'Bonjour.', id='fleurs/fr_fr/7/b.wav', speech=SAMPLES),
                expected(vocabulary, asked, 'Merci.', id='fleurs/fr_fr/9/a.wav', speech=SAMPLES),
            ],
        )
        to_english = expected(vocabulary, 'Translate this speech to English.', 'Hello.')
        check('fleurs_ast_fr_fr_en_us', [to_english, to_english])
        check(
            fleurs.ast('fr_fr', 'de_de'),
            [expected(vocabulary, 'Translate this speech to German.', 'Danke.', target_lang='de')],
        )
        check(
            'fleurs_ctc_fr_fr',
            [expected(vocabulary, '', t, ctc=True) for t in ('bonjour', 'bonjour', 'merci')],
        )
    fleurs._sentences.cache_clear()


def test_covost2(vocabulary):
    with mocked(
        [
            {
                'audio': flac(),
                'text': 'Merci.',
                'translation': 'Thanks.',
                'id': 'c.mp3',
                'client_id': 's',
            }
        ]
    ):
        check(
            'covost2_ast_fr_en',
            [
                expected(
                    vocabulary,
                    'Translate this speech to English.',
                    'Thanks.',
                    lang='fr',
                    id='covost2/fr/c.mp3',
                    speech=SAMPLES,
                )
            ],
        )
        check('covost2_asr_zh_CN', [expected(vocabulary, 'Transcribe the Chinese speech.', 'Merci.')])


def test_covost2_names_a_broken_clip(vocabulary):
    with mocked([{'audio': flac()[:100], 'text': 'x', 'translation': 'y', 'id': 'c.mp3', 'client_id': 's'}]):
        with pytest.raises(tf.errors.OpError, match='covost2/fr/c.mp3: .*Fetch it again'):
            list(seqio.get_mixture_or_task('covost2_ast_fr_en').get_dataset(split='train'))


def test_common_voice(vocabulary, tmp_path, monkeypatch):
    clips = tmp_path / 'sv-SE/clips'
    clips.mkdir(parents=True)
    (clips / 'a.mp3').write_bytes(flac())
    (clips.parent / 'test.tsv').write_text('client_id\tpath\tsentence\nx\ta.mp3\tHan sa "nej.\n', encoding='utf-8')
    monkeypatch.setattr(common_voice, 'corpus', lambda: tmp_path)
    check(
        'common_voice_asr_sv_SE',
        [
            expected(
                vocabulary,
                'Transcribe the Swedish speech.',
                'Han sa "nej.',
                lang='sv-SE',
                id='common_voice/sv-SE/a.mp3',
                speech=SAMPLES,
            )
        ],
        split='test',
    )
    with pytest.raises(Exception, match='train.tsv is missing: download sv-SE'):
        list(seqio.get_mixture_or_task('common_voice_asr_sv_SE').get_dataset(split='train'))
    (clips.parent / 'dev.tsv').write_text('id\ttext\n', encoding='utf-8')
    with pytest.raises(ValueError, match='dev.tsv: no table of Common Voice .*"path" and "sentence"'):
        cache.store_dir(seqio.get_mixture_or_task('common_voice_asr_sv_SE'), 'validation', tmp_path)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match='mozilladatacollective.com.*corpus.folder=FOLDER'):
        common_voice.corpus()


def test_manifests(vocabulary, manifest):
    registry.manifest('seqio_asr', {'test': manifest}, langs=['fr'], templates=['Write!'])
    examples = list(seqio.get_mixture_or_task('seqio_asr').get_dataset(split='test', shuffle=False).as_numpy_iterator())
    assert len(examples) == 8
    assert {e['inputs_pretokenized'] for e in examples} == {b'Write!'}
    test_utils.assert_dataset(
        tf.data.Dataset.from_tensors({'targets': examples[1]['targets']}),
        {'targets': [*vocabulary.encode("Ce n'est pas là."), 1]},
    )
    seqio.TaskRegistry.remove('seqio_asr')


def test_a_task_of_texts_hears_nothing(vocabulary, manifest):
    texts = manifest.with_name('texts.jsonl')
    texts.write_text('{"text": "Goodbye!"}\n{"audio": "missing.wav", "text": "Hello."}\n')
    for name, path, asked, wanted in (
        ('seqio_texts', texts, [b'', b''], ['Goodbye!', 'Hello.']),
        ('seqio_answers', manifest, [f'Say number {n}.'.encode() for n in range(24)], ['number 0', 'number 1']),
    ):
        registry.manifest(name, {'test': path}, task='text')
        dataset = seqio.get_mixture_or_task(name).get_dataset(split='test', shuffle=False)
        examples = list(dataset.as_numpy_iterator())
        assert all(len(each['speech']) == 0 == each['speech_length'] for each in examples)
        assert [each['inputs_pretokenized'] for each in examples] == asked
        for example, text in zip(examples, wanted):
            assert example['targets'].tolist() == [*vocabulary.encode(text), 1]
        seqio.TaskRegistry.remove(name)


def test_seqio_never_trims_in_silence(vocabulary, manifest):
    registry.manifest('seqio_long', {'test': manifest})
    task = seqio.get_mixture_or_task('seqio_long')
    for limits, said in (
        ({'targets': 4}, 'tokens of targets where 4 are allowed'),
        ({'speech': 16000}, 's of speech where 1.0 s are allowed'),
    ):
        with pytest.raises(tf.errors.OpError, match=said):
            list(task.get_dataset(limits, split='test', shuffle=False))
    seqio.TaskRegistry.remove('seqio_long')
