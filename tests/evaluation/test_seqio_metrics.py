"""Tasks that SeqIO scores: what its own evaluator makes of spoken questions, dialogs and continuations."""

import math

import numpy as np
import pytest
import seqio

import gin
from slm_jax import configuration, tasks
from slm_jax.data import json_lines
from slm_jax.data.feature_converter import SpeechTextFeatureConverter
from slm_jax.evaluation import seqio_metrics
from slm_jax.evaluation.seqio_metrics import Reference
from slm_jax.inference import model

PASSAGE = {'text': 'The shop opens at nine.', 'instruction': 'When does it open?', 'answers': ['at nine', 'nine']}
ASKED = {'text': 'When does it open?', 'instruction': 'The shop opens at nine.', 'target': 'Nine.'}
TURN = {'text': 'Is it open?', 'instruction': 'Go on.', 'target': 'It is open now.'}
STORY = {'text': 'It rained.', 'choices': ['We got wet.', 'We had a drought.'], 'answer': 'We got wet.'}
OTHER = {'text': 'It was dry.', 'choices': ['We got wet.', 'We had a drought.'], 'answer': 'We had a drought.'}


@pytest.fixture
def scored(tmp_path, write_wav, vocabulary, request):
    """Registers a task over some lines; returns what SeqIO's evaluator gives for answers and likelihoods."""
    write_wav(tmp_path / 'a.wav', 0.1)

    def register(rows, metric, **options):
        name = f'{request.node.name}_{metric}'.translate({ord(c): '_' for c in '[]-'})
        lines = [{'id': f'{metric}{n}', 'audio': 'a.wav', 'lang': 'en', **row} for n, row in enumerate(rows)]
        json_lines.write(tmp_path / f'{metric}.jsonl', lines)
        path = {'test': str(tmp_path / f'{metric}.jsonl')}
        return tasks.manifest(name, path, 'instruct', metric=metric, **options)

    def evaluate(rows, metric, answers=(), likelihoods=(), **options):
        name = register(rows, metric, **options)
        evaluator = seqio.Evaluator(name, SpeechTextFeatureConverter(), eval_split='test')

        def predict(dataset):
            ids = [[*vocabulary.encode(text), 1] for text in answers]
            return [(number, np.pad(row, (0, 40 - len(row)))) for number, row in enumerate(ids)]

        def score(dataset):
            assert len(list(dataset)) == len(likelihoods)
            return list(enumerate(likelihoods))

        found, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict, score_fn=score)
        return found.result()[name]

    return evaluate


def test_spoken_passages_with_written_questions_and_the_reverse(scored):
    found = scored([PASSAGE, ASKED], 'answers', ['The shop opens at nine.', 'nine!'])
    assert found == {'exact_match': 50.0, 'f1': pytest.approx(100 * (2 / 3 + 1) / 2)}, 'SQuAD knows no article'


def test_the_next_turn(scored, vocabulary):
    found = scored([TURN, TURN], 'turn', ['it is open NOW', 'It is not'], [-6.0, -2.0])
    assert found['f1'] == pytest.approx(100 * (1 + 4 / 7) / 2)
    tokens = len(vocabulary.encode(TURN['target'])) + 1
    assert found['perplexity'] == pytest.approx(math.exp(8 / (2 * tokens)))


def test_the_choice_of_two_endings(scored, vocabulary):
    options = {'templates': ['Go on.']}
    found = scored([STORY, OTHER], 'choices', [], [-1.0, -2.0, -1.0, -5.0], **options)
    tokens = sum(len(vocabulary.encode(row['answer'])) + 1 for row in (STORY, OTHER))
    assert found == {'accuracy': 50.0, 'accuracy_norm': 50.0, 'perplexity': pytest.approx(math.exp(6 / tokens))}


def test_metrics_by_themselves():
    three = [Reference('a b', ('a b',), 3, 'x', True), Reference('c', ('c',), 2, 'x', False)]
    assert seqio_metrics.choices(three, [-3.0, -2.5]) == {'accuracy': 0.0, 'accuracy_norm': 100.0}
    scores = (np.array([-3.0, -2.5]), {'other': [0, 0]})
    assert seqio_metrics.choices(three, scores)['accuracy'] == 0.0
    assert seqio_metrics.perplexity(three, scores) == {'perplexity': pytest.approx(math.e)}, 'of the right one alone'
    assert seqio_metrics.squad(three[:1], ['The a, b!']) == {'exact_match': 100.0, 'f1': 100.0}
    assert seqio_metrics.overlap(three[1:], ['d']) == {'f1': 0.0}
    assert seqio_metrics.reference('as it is') == 'as it is'


@pytest.mark.parametrize(
    ('row', 'options', 'said'),
    [
        (STORY, {}, 'field "instruction" is missing'),
        ({**STORY, 'answer': 'Other.'}, {'templates': ['Go on.']}, 'field "choices" has to be two or more different'),
        ({'text': 'a'}, {'templates': ['Go on.']}, 'field "choices" has to be two or more different'),
    ],
)
def test_lines_that_cannot_be_scored(scored, row, options, said):
    with pytest.raises(Exception, match=said):
        scored([row], 'choices', [], [0.0, 0.0], **options)


def test_a_metric_is_of_a_kind_of_task(tmp_path):
    for metric, kind in (('choices', 'asr'), ('rouge', 'instruct')):
        with pytest.raises(ValueError, match=f"metric '{metric}' is of no task = '{kind}'; answers, turn, choices are"):
            tasks.manifest(f'no_{metric}', 'a.jsonl', kind, metric=metric)


def test_the_sets_of_the_package_are_such_tasks():
    sets = 'PASSAGES ASKED DIALOGS ENDINGS QUIZ'.split()
    bindings = [f'{name}={{"test": "{name.lower()}.jsonl"}}' for name in sets]
    configuration.parse_gin(['tasks/spoken_questions.gin'], bindings)
    mixture = seqio.get_mixture_or_task(model.query('%MIXTURE_OR_TASK_NAME'))
    assert {task.name: [fn.__name__ for fn in task.metric_fns] for task in mixture.tasks} == {
        'spoken_passages': ['squad'],
        'spoken_questions': ['squad'],
        'spoken_dialogs': ['overlap', 'perplexity'],
        'spoken_endings': ['choices', 'perplexity'],
        'spoken_quiz': ['choices', 'perplexity'],
    }
    gin.clear_config()
