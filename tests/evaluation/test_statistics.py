"""Scores against values computed by hand and against the libraries' own calls; intervals against theory."""

import jiwer
import numpy as np
import pytest
import sacrebleu

from slm_jax.evaluation import statistics


def test_word_errors_by_hand():
    # One substitution and one deletion in 3 words; one insertion in 2: 3 errors in 5 words.
    result = statistics.words(['the cat sat', 'a dog'], ['the hat', 'a big dog'])
    assert result.counts.tolist() == [[1, 1, 1, 0], [2, 0, 0, 1]]
    assert result.scores() == {'wer': 60.0, 'words': 5, 'substitutions': 1, 'deletions': 1, 'insertions': 1}


def test_word_error_rate_is_of_the_corpus_not_a_mean_of_sentences():
    references, predictions = ['a', 'b c d e f g h i j'], ['x', 'b c d e f g h i j']
    assert statistics.words(references, predictions).scores()['wer'] == 100 * jiwer.wer(references, predictions) == 10


def test_character_errors_by_hand():
    assert statistics.characters(['abcd'], ['abxd']).scores() == {'cer': 25.0, 'characters': 4}
    assert statistics.characters(['ab cd'], ['']).scores()['cer'] == 100.0
    references, predictions = ['abc de', 'fgh'], ['abcde', 'fghi']
    assert statistics.characters(references, predictions).scores()['cer'] == 100 * jiwer.cer(references, predictions)


def test_an_empty_prediction_is_all_deletions():
    result = statistics.words(['one two'], ['']).scores()
    assert (result['wer'], result['deletions']) == (100.0, 2)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(statistics.MetricsError, match='1 for 2 references'):
        statistics.words(['a', 'b'], ['a'])
    with pytest.raises(statistics.MetricsError, match='empty at positions'):
        statistics.words(['a', ''], ['a', 'b'])


def test_bleu_and_chrf_are_sacrebleus():
    references = ['The cat is on the mat today.', 'There is a house by the sea.']
    predictions = ['The cat is on the mat now.', 'There is a home by the sea.']
    found, signature = statistics.bleu(references, predictions, '13a')
    assert found.scores() == {'bleu': sacrebleu.corpus_bleu(predictions, [references]).score}
    assert 'tok:13a' in signature and 'version:' in signature
    found, signature = statistics.chrf(references, predictions)
    assert found.scores() == {'chrf': sacrebleu.corpus_chrf(predictions, [references]).score}
    assert 'nc:6' in signature
    found, signature = statistics.bleu(['我们今天去学校'], ['我们今天去学校'], 'zh')
    assert found.scores()['bleu'] == pytest.approx(100.0) and 'tok:zh' in signature


def test_slot_f1_by_hand():
    #             right    wrong value  missed   invented  rightly none
    references = ['large', 'small', 'medium', 'none', 'none']
    predictions = ['large', 'large', 'none', 'large', '']
    # tp 1, fp 2 (wrong, invented), fn 2 (wrong, missed).
    third = pytest.approx(100 / 3)
    assert statistics.slots(references, predictions).scores() == {
        'f1': third,
        'precision': third,
        'recall': third,
        'accuracy': 40.0,
    }


def test_slot_f1_of_nothing():
    assert set(statistics.slots(['none'], ['none']).scores().values()) == {100.0}
    assert set(statistics.slots(['large'], ['none']).scores().values()) == {0.0}
    assert statistics.slots(['none'], ['large']).scores()['recall'] == 0.0


@pytest.mark.parametrize(
    ('accepted', 'answer', 'contains', 'f1', 'exact'),
    [
        (['paris'], 'paris', 100, 100, 100),
        (['paris'], 'it is paris', 100, 50, 0),
        (['paris'], 'parisian', 0, 0, 0),
        (['blue whale', 'whale'], 'whale', 100, 100, 100),
        (['blue whale'], 'whale blue', 0, 100, 0),
        (['b b'], 'b', 0, 200 / 3, 0),
        (['x'], '', 0, 0, 0),
    ],
)
def test_answers_by_hand(accepted, answer, contains, f1, exact):
    scores = statistics.answers([accepted], [answer]).scores()
    assert scores == {'contains': contains, 'f1': pytest.approx(f1), 'accuracy': exact}


def test_the_likeliest_of_several_texts():
    # The second is the likelier text, the first the likelier one by the byte ('é' has two).
    both = [[-4.0, -3.0], [-2.0, -2.5]]
    scores = statistics.choices([0, 1], both, [['abcdé', 'ab'], ['ab', 'abcd']]).scores()
    assert scores == {'accuracy': 0.0, 'accuracy_norm': 100.0}
    assert statistics.choices([1, 1], both, [['abcdé', 'ab'], ['ab', 'a']]).scores()['accuracy'] == 50.0


def test_perplexity_is_of_all_tokens_together():
    scores = statistics.likelihood([-2.0, -4.0], [1, 3], ['ab', 'é']).scores()
    assert scores == pytest.approx({'perplexity': np.exp(6 / 4), 'bits_per_byte': 6 / np.log(2) / 4})


def test_scores_of_resamples_are_those_of_the_examples_drawn():
    rng = np.random.default_rng(0)
    references = [' '.join(rng.choice(list('abcdefg'), 6)) for _ in range(7)]
    predictions = [' '.join(rng.choice(list('abcdefg'), 6)) for _ in range(7)]
    found = statistics.joined(
        [
            statistics.words(references, predictions),
            statistics.bleu(references, predictions, '13a')[0],
            statistics.chrf(references, predictions)[0],
        ]
    )
    values = statistics.resampled(found, list('abcdefg'), 'seed')
    rng = np.random.default_rng(list(b'seed'))
    for n in range(3):
        drawn = rng.integers(7, size=7)
        some = [references[i] for i in drawn], [predictions[i] for i in drawn]
        assert values['wer'][n] == pytest.approx(100 * jiwer.wer(*some))
        assert values['bleu'][n] == pytest.approx(sacrebleu.corpus_bleu(some[1], [some[0]]).score)
        assert values['chrf'][n] == pytest.approx(sacrebleu.corpus_chrf(some[1], [some[0]]).score)
    assert values['wer'].shape == (statistics.RESAMPLES,)


def test_an_interval_is_as_wide_as_theory_says():
    right = ['x' if n < 80 else 'y' for n in range(100)]
    low, high = statistics.interval(
        statistics.resampled(statistics.exact(right, ['x'] * 100), [str(n) for n in range(100)], 's')['accuracy']
    )
    # The normal approximation of a binomial: 80 ± 1.96 * 4.
    assert (low, high) == (pytest.approx(72.2, abs=1.5), pytest.approx(87.8, abs=1.5))


@pytest.mark.parametrize(
    'reference, prediction, phrases, expected',  # words in phrases, errors in them, other words, errors
    [
        ('call siobhan now', 'call siobhan now', ['siobhan'], (1, 0, 2, 0)),
        ('call siobhan now', 'call shevaun now', ['siobhan'], (1, 1, 2, 0)),
        ('call siobhan now', 'ball siobhan', ['siobhan'], (1, 0, 2, 2)),
        ('call siobhan now', 'call siobhan siobhan now now', ['siobhan'], (1, 1, 2, 1)),
        ('bank of america of note', 'bank off america off note', ['bank of america'], (3, 1, 2, 1)),
        ('of note', 'bank of america of note', ['bank of america'], (0, 3, 2, 0)),
        ('a b a b', 'a b a b', ['a b a', 'x'], (3, 0, 1, 0)),
        ('call siobhan now', '', [], (0, 0, 3, 3)),
    ],
)
def test_words_of_phrases_and_all_others(reference, prediction, phrases, expected):
    found = statistics.biased([reference, 'not counted'], [prediction, 'at all'], [phrases, None])
    assert found.counts.tolist() == [list(expected), [0, 0, 0, 0]]
    scores = found.scores()
    if expected[0]:
        assert scores['b_wer'] == pytest.approx(100 * expected[1] / expected[0]) and scores['b_words'] == expected[0]
    else:
        assert 'b_wer' not in scores
    assert scores['u_wer'] == pytest.approx(100 * expected[3] / expected[2])
    edits = statistics.words([reference], [prediction]).scores()
    assert expected[1] + expected[3] == sum(edits[kind] for kind in ('substitutions', 'deletions', 'insertions'))
