"""Text tasks: what is asked and answered, a wording for each epoch, and the order of tokens."""

import json
import random

import jiwer
import numpy as np
import pytest
import seqio

import gin
from slm_jax.corpora import text_noise
from slm_jax.tasks import text

ORDER = {
    'text': 'can i get a large latte with oat milk',
    'lang': 'en',
    'slots': {'size': 'large', 'coffeeDrink': 'latte', 'milkAmount': 'oat milk'},
}


@pytest.fixture
def corpora(tmp_path):
    """A folder with three lines of each corpus and split."""
    rows = {
        'text': [
            {'text': f'Press {n} to go on.', 'lang': 'en', 'source': 'voice_prompts'} for n in ('one', 'two', 'six')
        ],
        'pairs': [{'text': 'Thanks.', 'lang': 'en', 'translation': 'Merci.', 'target_lang': 'fr', 'source': 'prompts'}]
        * 3,
        'orders': [ORDER] * 3,
    }
    for name, lines in rows.items():
        for split in ('train', 'validation'):
            content = ''.join(json.dumps(line) + '\n' for line in lines)
            (tmp_path / f'{name}_{split}.jsonl').write_text(content, encoding='utf-8')
    gin.bind_parameter('slm_jax.tasks.text.corpora.folder', str(tmp_path))
    yield tmp_path
    gin.clear_config()


def test_slots_answer_from_the_order():
    answers = {}
    for seed in range(200):
        _, request, answer = text.slots(ORDER, random.Random(seed))
        answers.setdefault(request, set()).add(answer)
    assert answers['Which size was ordered?'] == {'large'}
    assert answers['Which milk was ordered?'] == {'oat milk'}
    assert answers['How much sugar was ordered?'] == {'none'}


def test_what_an_encoder_heard_is_half_of_the_noise():
    row = ORDER | {'heard': ['get a lather', 'get a later']}
    said = [text.transcription(row, random.Random(seed)) for seed in range(400)]
    assert {answer for _, _, answer in said} == {ORDER['text']}
    counts = [sum(heard == spoken for spoken, _, _ in said) for heard in row['heard']]
    assert all(50 < count < 110 for count in counts)  # of 0.8 * 0.5 / 2 * 400 = 80


def test_words_are_those_of_the_line_in_any_order():
    lists = [text.words(ORDER, random.Random(seed)) for seed in range(50)]
    assert all(said == answer and {*said.split()} <= {*ORDER['text'].split()} for said, _, answer in lists)
    assert {len(said.split()) for said, _, _ in lists} == {1, 2, 3, 4, 5, 6}
    assert len({said for said, _, _ in lists}) > 40


def test_translation_names_its_target():
    row = {'text': 'Thanks.', 'lang': 'en', 'translation': 'Merci.', 'target_lang': 'fr'}
    for seed in range(20):
        _, request, answer = text.translation(row, random.Random(seed))
        assert 'French' in request and answer == 'Merci.'


def test_noise_has_the_rate_it_is_asked_for():
    said, rng = 'please hold the line ' * 50, random.Random(0)
    assert text_noise.as_recognised(said, 0.0, rng) == said.strip()
    shares = [jiwer.cer(said.strip(), text_noise.as_recognised(said, rate, rng)) for rate in (0.1, 0.3)]
    np.testing.assert_allclose(shares, (0.1, 0.3), rtol=0.25)


def test_corrupted_spans_restore_the_text():
    tokens, vocab_size = list(range(10, 60)), 100
    inputs, targets = text_noise.corrupt_spans(tokens, vocab_size, random.Random(0))
    spans, current = {}, None
    for token in targets:
        if token >= 60:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    restored = [t for token in inputs for t in (spans[token] if token >= 60 else [token])]
    assert restored[: len(tokens)] == tokens[: len(restored)] and len(restored) >= len(tokens) - 1
    assert 0.08 < sum(map(len, spans.values())) / len(tokens) < 0.25


def test_tasks_give_said_then_asked(corpora, vocabulary):
    task = seqio.get_mixture_or_task('text_slots_orders')
    example = next(task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator())
    assert example['inputs'][-1] == example['targets'][-1] == vocabulary.eos_id
    said = example['inputs_pretokenized'].decode()
    assert vocabulary.decode(example['inputs'][:-1].tolist()) == said
    assert vocabulary.decode(example['targets'][:-1].tolist()) == example['targets_pretokenized'].decode()


def test_wordings_are_a_function_of_the_seed(corpora, vocabulary):
    step = seqio.get_mixture_or_task('text_slots_orders').preprocessors[-1]
    features = {'inputs': seqio.Feature(vocabulary)}

    def ask(seed):
        example = {'id': b'orders/1', 'row': json.dumps(ORDER).encode(), 'template_seed': np.int64(seed)}
        return step.function(example, features, None)['inputs_pretokenized']

    assert ask(3) == ask(3)
    assert len({ask(seed) for seed in range(20)}) > 8
