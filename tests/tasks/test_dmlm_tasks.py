"""DMLM's tasks: how their rows are laid out, and which lines are refused, by name."""

import json

import numpy as np
import pytest
import seqio

import gin
from slm_jax import tasks  # noqa: F401  registers them
from slm_jax.data import loader, modalities
from slm_jax.data.modalities import Modalities
from slm_jax.llms.decoder_only import DecoderOnlyConfig
from slm_jax.tasks import dmlm

CONFIG = DecoderOnlyConfig(vocab_size=330, emb_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
KNOWN = Modalities(llm=CONFIG, speech=12, image=6, image_size=(2, 2), languages=('en', 'fr'))
SPEECH, IMAGE, CONTROL = (KNOWN.ranges[name][0] for name in ('speech', 'image', 'control'))
TEXT_, SPEECH_, IMAGE_, EN, FR = range(CONTROL, CONTROL + 5)
LINE = {
    'id': 'clip', 'text': 'Goodbye!', 'lang': 'en', 'units': [3, 0, 11], 'translation': {'fr': 'Au revoir !'},
    'target_units': [7, 7], 'target_lang': 'fr', 'caption': 'a line', 'tokens': [[1, 5], [0, 2]],
    'turns': [{'text': 'Goodbye!'}, {'speech': [2, 4]}, {'image': [1, 1, 1, 1]}, {'text': 'Au revoir !', 'lang': 'fr'}],
}  # fmt: skip


@pytest.fixture
def examples(vocabulary, tmp_path):
    """examples(name, lines, …): (inputs, targets, fields) of the lines of a task, by the loader's own steps."""

    def read(name, *lines, learn=(), **fields):
        gin.clear_config()
        path = tmp_path / 'lines.jsonl'
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
        given = {'llm': CONFIG, 'speech': 12, 'image': 6, 'image_size': (2, 2), 'languages': ('en', 'fr')}
        for field, value in (given | fields).items():
            gin.bind_parameter(f'slm_jax.data.modalities.Modalities.{field}', value)
        gin.bind_parameter('slm_jax.tasks.dmlm.manifests.files', {name: str(path)})
        gin.bind_parameter('slm_jax.tasks.dmlm.manifests.learn_inputs', learn)
        task = seqio.get_mixture_or_task(name)
        (step,) = (step for step in task.preprocessors if isinstance(getattr(step, 'function', None), dmlm._Tokens))
        rows = task.source.get_dataset('train', shuffle=False).as_numpy_iterator()
        return [step.function({n: row[n] for n in step.reads}, task.output_features, None) for row in rows]

    yield read
    gin.clear_config()


LAYOUTS = {
    'dmlm_asr': ([SPEECH_, 'units', TEXT_, EN], 'text'),
    'dmlm_t2s': ([TEXT_, 'text', SPEECH_, EN], 'units'),
    'dmlm_s2tt': ([SPEECH_, 'units', TEXT_, FR], 'translation'),
    'dmlm_s2st': ([SPEECH_, 'units', SPEECH_, FR], 'target_units'),
    'dmlm_caption': ([IMAGE_, 'tokens', TEXT_, EN], 'caption'),
    'dmlm_draw': ([TEXT_, 'caption', IMAGE_], 'tokens'),
    'dmlm_text_lm': ([TEXT_, EN], 'text'),
    'dmlm_speech_lm': ([SPEECH_, EN], 'units'),
    'dmlm_image_lm': ([IMAGE_], 'tokens'),
    'dmlm_turns': (
        [TEXT_, 'text', SPEECH_, [SPEECH + 2, SPEECH + 4], IMAGE_, 4 * [IMAGE + 1], TEXT_, FR],
        'translation',
    ),
}


@pytest.mark.parametrize('learn', [False, True])
@pytest.mark.parametrize('name', LAYOUTS)
def test_layout(name, learn, examples, vocabulary):
    ids = {
        'text': vocabulary.encode(LINE['text']), 'caption': vocabulary.encode(LINE['caption']),
        'translation': vocabulary.encode(LINE['translation']['fr']),
        'units': [SPEECH + unit for unit in LINE['units']],
        'target_units': [SPEECH + unit for unit in LINE['target_units']],
        'tokens': [IMAGE + token for token in np.ravel(LINE['tokens']).tolist()],
    }  # fmt: skip
    expected, target = LAYOUTS[name]
    flat = []
    for part in expected:
        flat += ids[part] if isinstance(part, str) else part if isinstance(part, list) else [part]
    language = flat[-1] in (EN, FR)
    if learn:
        end = len(flat) - language
        flat = [flat[0], *(-token for token in flat[1:end]), *flat[end:]]
    (found,) = examples(name, LINE, learn=(name,) if learn else ())
    assert not found['error']
    assert found['inputs'].tolist() == flat
    assert found['targets'].tolist() == [*ids[target], 1]
    said = found['targets_pretokenized'].decode()
    assert modalities.Vocabulary(vocabulary, KNOWN).decode(found['targets']) == said
    lang = {'dmlm_s2tt': b'fr', 'dmlm_turns': b'fr'}.get(name, b'en')
    assert found['target_lang'] == (lang if target in ('text', 'caption', 'translation') else b'')


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('dmlm_asr', {'units': [3, 12]}, 'field "units": 12 is outside the range of speech, 0 to 11 (Modal'),
        ('dmlm_t2s', {'units': [-1]}, 'field "units": -1 is outside the range'),
        ('dmlm_speech_lm', {'units': [True]}, 'field "units" is [True]; a list of units, whole numbers, was expected.'),
        ('dmlm_speech_lm', {'units': []}, 'field "units" is []; a list of units'),
        ('dmlm_asr', {'units': None}, 'field "units" is None; a list of units'),
        ('dmlm_asr', {'text': ' '}, 'field "text" is \' \'; a text was expected.'),
        ('dmlm_caption', {'tokens': [[1, 2, 3], [4, 5, 0]]}, 'the image has 2 × 3 tokens and 2 × 2 were expected'),
        ('dmlm_image_lm', {'tokens': [1, 2, 3]}, 'the image has 3 tokens and 2 × 2 were expected'),
        ('dmlm_image_lm', {'tokens': [[1, 2, 3], [0]]}, 'the image has 2 × 3 tokens and 2 × 2 were expected'),
        ('dmlm_draw', {'tokens': [[1, 2], [3, 6]]}, 'field "tokens": 6 is outside the range of image, 0 to 5'),
        ('dmlm_asr', {'lang': 'de'}, "the language 'de' has no control token; Modalities.languages (LANGUAGES)"),
        ('dmlm_s2tt', {'translation': {'fr': 'a', 'de': 'b'}, 'target_lang': ''}, 'field "target_lang" is missing'),
        ('dmlm_turns', {'turns': [{'video': [1]}]}, 'field "turns[0]" must have one of text, speech, image.'),
        ('dmlm_turns', {'turns': []}, 'field "turns" is []; a list of objects was expected'),
        ('dmlm_turns', {'turns': [{'speech': [12]}]}, 'field "turns[0].speech": 12 is outside the range'),
    ],
)  # fmt: skip
def test_a_line_that_does_not_fit_is_named(name, change, message, examples, tmp_path):
    found = examples(name, LINE, LINE | change)
    assert not found[0]['error']
    error = found[1]['error'].decode()
    assert error.startswith(f'{tmp_path / "lines.jsonl"}:2: ') and message in error


def test_units_of_a_modality_or_codebook_that_the_model_has_not(examples, tmp_path, monkeypatch):
    (found,) = examples('dmlm_caption', LINE, image=0, image_size=())
    error = found['error'].decode()
    assert 'field "tokens": the vocabulary has no tokens of image: set Modalities.image (IMAGE_TOKENS)' in error

    monkeypatch.setattr(dmlm, '_label', {'books/k12': 'k12@abc'}.__getitem__)
    fits, other, unsaid = examples(
        'dmlm_asr', LINE | {'codebook': 'k12@abc'}, LINE | {'codebook': 'k12@def'}, LINE, codebook='books/k12'
    )
    assert not fits['error'] and not unsaid['error']
    assert b"the tokens are of 'k12@def', and the model has 'k12@abc' (books/k12). Encode them anew" in other['error']


def test_before_the_first_step(examples, tmp_path):
    """The loader names the line, or goes on without it and lists it."""
    examples('dmlm_asr', LINE, LINE | {'units': [12]})
    with pytest.raises(
        ValueError, match=r'dmlm_asr: .*lines.jsonl:2: field "units": 12 is outside the range of speech'
    ):
        loader.SpeechTextLoader('dmlm_asr', 'train', cache_dir=tmp_path)
    found = loader.SpeechTextLoader('dmlm_asr', 'train', cache_dir=tmp_path, on_bad_example='skip')
    assert [name for name, _ in found.skipped] == ['clip'] and found.planned[0].index.tolist() == [0]
    ((_, (info, *_)),) = found.examples()
    assert (info.reference, info.instruction, info.lang, info.target_lang) == ('Goodbye!', '3 0 11', 'en', 'en')
    with pytest.raises(ValueError, match="task 'dmlm_t2s' has no manifest for the split 'train'"):
        loader.SpeechTextLoader('dmlm_t2s', 'train', cache_dir=tmp_path)
    gin.bind_parameter('slm_jax.tasks.dmlm.manifests.files', {'dmlm_tts': 'a.jsonl'})
    with pytest.raises(ValueError, match="dmlm.manifests: there is no task 'dmlm_tts'; there are dmlm_asr"):
        loader.SpeechTextLoader('dmlm_asr', 'train', cache_dir=tmp_path)
