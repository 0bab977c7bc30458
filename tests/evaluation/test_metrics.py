"""Metrics against values computed by hand and against the libraries' own calls."""

import importlib.util
import math

import pytest

from slm_jax.evaluation import metrics


def example(reference, prediction, **fields):
    return {
        'id': 'x',
        'task': 't',
        'lang': 'en',
        'reference': reference,
        'prediction': prediction,
        **fields,
    }


def test_bleu_tokenizer_follows_the_target_language():
    named = {code: metrics.bleu_tokenizer(code) for code in ('zh-CN', 'yue', 'th', 'en', 'pt-BR')}
    assert named == {'zh-CN': 'zh', 'yue': 'zh', 'th': 'char', 'en': '13a', 'pt-BR': '13a'}


def test_japanese_is_cut_by_mecab_where_that_is_installed(monkeypatch):
    pair = example('今日は学校に行きます', '今日は学校へ行きます', lang='en', target_lang='ja')
    if importlib.util.find_spec('MeCab'):
        signature = metrics.score([pair])['signatures']['bleu']
        assert 'tok:ja-mecab-0.996-IPA' in signature
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert 'tok:char' in metrics.score([pair])['signatures']['bleu']


def test_kind_and_group():
    assert metrics.kind_of({'lang': 'fr'}) == 'transcription'
    assert metrics.kind_of({'lang': 'en-US', 'target_lang': 'en'}) == 'transcription'
    assert metrics.group_of({'lang': 'fr', 'target_lang': 'en'}) == 'fr-en'
    assert metrics.group_of({'lang': 'en', 'slot': 'size'}) == 'size'
    asked = {'lang': 'en', 'subject': 'anatomy'}
    assert metrics.group_of(asked | {'choices': ['A', 'B'], 'log_likelihoods': [-1, -2]}) == 'anatomy'
    assert metrics.group_of(asked) == 'en'
    assert metrics.group_of({'lang': None}) == 'unknown'
    assert metrics.kind_of({'lang': 'en', 'target_lang': 'fr', 'answers': ['oui']}) == 'answers'


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (['a', 'b'], ['a', 'b']),
        ({'text': ['a'], 'answer_start': [3]}, ['a']),
        ('a', 'a'),
        ({'size': 'large'}, {'size': 'large'}),
        (None, None),
    ],
)
def test_accepted(value, expected):
    assert metrics.accepted(value) == expected


def test_answers_are_scored_as_squad_is():
    result = metrics.score(
        [
            example('Paris', 'It is Paris.', answers=['Paris'], id='1'),
            example('two', 'The 2', answers=['two', '2'], id='2'),
            example('lion', 'a tiger', answers=['lion', 'the lions'], id='3'),
            example('北京', '是北京。', lang='zh', answers=['北京'], id='4'),
        ]
    )
    scores = result['scores']['answers']
    assert result['normalizers'] == {'answers': 'squad'}
    assert scores['en']['contains'] == scores['average']['contains'] - 100 / 6 == pytest.approx(200 / 3)
    assert scores['en']['accuracy'] == pytest.approx(100 / 3)
    assert scores['en']['f1'] == pytest.approx((50 + 100 + 0) / 3)
    assert scores['zh']['f1'] == pytest.approx(100 * 4 / 6), 'characters are its words; SQuAD leaves the full stop'
    assert metrics.score([example('a b', 'x b', answers=['a b'])], 'basic')['scores']['answers']['en']['f1'] == 50.0
    with pytest.raises(metrics.MetricsError, match=r"'the' is empty after normalising \(squad\)"):
        metrics.check_reference(example('yes', None, answers=['yes', 'the']))


def test_every_rate_has_an_interval_and_counts_have_none():
    pairs = [('a b c', 'a b c'), ('a b', 'a x'), ('c', 'c'), ('d e', 'd')]
    kinds = ({}, {'target_lang': 'fr'}, {'slot': 'size'}, {'answers': ['a b', 'c']})
    rows = [example(r, p, id=n, **fields) for fields in kinds for n, (r, p) in enumerate(pairs)]
    rows += [example(r, p, id=n, lang='de') for n, (r, p) in enumerate(pairs)]
    result = metrics.score(rows)
    for groups in result['scores'].values():
        for scores in groups.values():
            assert list(scores['intervals']) == [name for name in metrics.RATES if name in scores]
            for name, (low, high) in scores['intervals'].items():
                assert 0 <= low <= scores[name] + 1e-9 and scores[name] - 1e-9 <= high
    assert set(result['scores']['transcription']) == {'de', 'en', 'overall', 'average'}
    assert metrics.score(rows)['scores'] == result['scores'], 'of the same examples the same'
    alone = metrics.score(rows[:1])['scores']['transcription']['en']
    assert alone['intervals'] == {} and alone['wer'] == 0.0, 'of one example nothing is known'


def test_scored_texts_have_an_accuracy_and_a_perplexity():
    values = {'log_likelihoods': [-1.0, -3.0], 'tokens': [2, 2]}
    rows = [
        example('b', 'a', id=1, choices=['a', 'b'], **values),
        example('c', 'c', id=2, choices=['c', 'd'], **values),
    ]
    result = metrics.score([*rows, example('e', 'e', id=3, log_likelihoods=[-2.0], tokens=[2])])
    chosen, alone = result['scores']['choices']['en'], result['scores']['likelihood']['en']
    assert chosen['accuracy'] == chosen['accuracy_norm'] == 50.0
    assert chosen['perplexity'] == alone['perplexity'] == pytest.approx(math.e), 'of the reference: 4 nats in 4 tokens'
    assert result['normalizers'] == {'choices': 'none', 'likelihood': 'none'}
    assert [metrics.error_rate(row) for row in rows] == [100.0, 0.0]


def test_questions_about_one_clip_are_drawn_together():
    def width(same):
        rows = [example('yes', 'yes' if n % 2 else 'no', slot=slot, id=f'{n}{"" if same else slot}')
                for n in range(40) for slot in 'abcdefgh']  # fmt: skip
        low, high = metrics.score(rows)['scores']['slots']['overall']['intervals']['accuracy']
        return high - low

    assert width(same=True) == pytest.approx(31, abs=3)  # 2 * 1.96 * 50 / sqrt(40)
    assert width(same=False) == pytest.approx(11, abs=2)  # 2 * 1.96 * 50 / sqrt(320)


def test_the_share_of_another_systems_scores():
    ours = [example('yes', 'yes' if n % 10 < 4 else 'no', slot='s', id=n) for n in range(50)]
    theirs = [example('yes', 'yes' if n % 10 < 8 else 'no', slot='s', id=n) for n in range(50)]
    oracle = metrics.score(ours, others=theirs)['oracle']
    assert oracle['scores'] == metrics.score(theirs)['scores']
    share = oracle['shares']['slots']['s']
    assert share['accuracy'] == pytest.approx(50.0)
    low, high = share['intervals']['accuracy']
    assert 30 < low < 40 and 60 < high < 70
    same = metrics.score(theirs, others=theirs)['oracle']['shares']['slots']['s']
    assert same['intervals']['accuracy'] == [100.0, 100.0], 'both are drawn alike'
    nothing = [{**row, 'prediction': 'no'} for row in theirs]
    assert metrics.score(ours, others=nothing)['oracle']['shares']['slots']['s'] == {'intervals': {}}


def test_score_groups_by_language_direction_and_slot():
    result = metrics.score(
        [
            example('Good morning.', 'good morning', lang='en'),
            example('buenos días', 'buenos dias', lang='es'),
            example('hello', 'hello', lang='fr', target_lang='en'),
            example('large', 'large', slot='size'),
        ]
    )
    scores = result['scores']
    assert set(scores['transcription']) == {'en', 'es', 'overall', 'average'}
    assert scores['transcription']['en']['wer'] == 0.0
    assert scores['transcription']['en']['accuracy'] == 100.0
    assert scores['transcription']['es']['wer'] == 50.0
    assert scores['transcription']['overall']['wer'] == 25.0
    assert scores['transcription']['average']['wer'] == 25.0
    assert set(scores['translation']) == {'fr-en'}, 'one group needs no overall row'
    assert scores['slots']['size']['f1'] == 100.0
    assert result['normalizers'] == {
        'transcription': 'basic (es), whisper_english (en)',
        'translation': 'none',
        'slots': 'basic',
    }
    assert set(result['signatures']) == {'wer', 'cer', 'bleu', 'chrf'}
    assert 'by_task' not in result


def test_unspaced_languages_have_no_word_error_rate_and_no_spaces():
    result = metrics.score([example('你好,世界', '你好世界', lang='zh')])['scores']
    assert result['transcription']['zh']['cer'] == 0.0
    assert 'wer' not in result['transcription']['zh']
    both = metrics.score([example('你好', '你好', lang='zh'), example('a b', 'a c', lang='en')])
    assert both['scores']['transcription']['overall']['wer'] == 50.0, 'over the English words only'
    assert both['scores']['transcription']['overall']['words'] == 2


def test_translation_into_languages_of_different_tokenizers_has_no_overall_bleu():
    result = metrics.score(
        [
            example('the house is small', 'the house is small', lang='de', target_lang='en'),
            example('房子很小', '房子很小', lang='de', target_lang='zh'),
        ]
    )
    overall = result['scores']['translation']['overall']
    assert 'bleu' not in overall and overall['chrf'] == pytest.approx(100.0)
    assert result['scores']['translation']['average']['bleu'] == pytest.approx(100.0)
    assert 'tok:13a' in result['signatures']['bleu'] and 'tok:zh' in result['signatures']['bleu']


def test_more_than_one_task_is_scored_by_task():
    result = metrics.score([example('a', 'a', task='one'), example('b', 'c', task='two')])
    assert result['by_task']['one']['transcription']['en']['wer'] == 0.0
    assert result['by_task']['two']['transcription']['en']['wer'] == 100.0
    assert result['scores']['transcription']['en']['wer'] == 50.0


@pytest.mark.parametrize('reference', ['', '   ', '...'])
def test_an_empty_reference_is_named(reference):
    with pytest.raises(metrics.MetricsError, match='reference: empty.*clip7.*Give them a text'):
        metrics.score([example(reference, 'something', id='clip7')])


def test_a_reference_is_checked_before_there_is_an_answer():
    for good in (example('yes', None), example('...', None, target_lang='fr'), example('none', None, slot='size')):
        metrics.check_reference(good)
    metrics.check_reference(example('...', None), 'none')
    for bad, message in (
        (example('(…)', None), r"example 'x': its reference '\(…\)' is empty after normalising \(basic\)"),
        (example('。', None, lang='ja'), 'empty after normalising'),
        (example(' ', None, target_lang='fr'), r'empty after normalising \(none\).*--translation_normalizer none'),
        (example(None, None), 'its reference is None; it must be a string'),
    ):
        with pytest.raises(metrics.MetricsError, match=message):
            metrics.check_reference(bad)


def test_a_missing_field_and_an_empty_evaluation_are_refused():
    with pytest.raises(metrics.MetricsError, match="prediction: missing.*'x'"):
        metrics.score([example('a', None)])
    with pytest.raises(metrics.MetricsError, match='none to score'):
        metrics.score([])
    with pytest.raises(metrics.MetricsError, match="answers: 'a' in example 'x'; they must be a list of strings"):
        metrics.score([example('a', 'a', answers='a')])


def test_english_transcripts_are_normalised_as_whisper_is_scored():
    said = [example("It's grey, um, twenty one", 'it is gray 21', lang='en-GB'), example('Hmm.', 'hmm', lang='en')]
    result = metrics.score(said)
    assert result['scores']['transcription']['overall']['wer'] == 0.0
    assert result['normalizers'] == {'transcription': 'basic (en), whisper_english (en-GB)'}, 'of Hmm. nothing is left'
    assert metrics.score(said[:1])['normalizers'] == {'transcription': 'whisper_english'}
    assert metrics.score(said, 'basic')['normalizers'] == {'transcription': 'basic'}
    assert metrics.score(said[:1], 'basic')['scores']['transcription']['en-GB']['wer'] == 100.0
    assert metrics.error_rate(said[0]) == 0.0 and metrics.error_rate(said[0], 'basic') == 100.0
    assert metrics.error_rate(example('two', '2', slot='shots')) == 100.0, 'slots are compared as they stand'
    with pytest.raises(metrics.MetricsError, match=r'empty after normalising \(whisper_english\)'):
        metrics.check_reference(said[1], 'whisper_english')


def test_error_rate_of_one_example():
    assert metrics.error_rate(example('a b', 'a c')) == 50.0
    assert metrics.error_rate(example('你好', '你们', lang='zh')) == 50.0
    assert metrics.error_rate(example('none', '', slot='size')) == 0.0
    assert metrics.error_rate(example('large', 'small', slot='size')) == 100.0
    assert metrics.error_rate(example('a b', 'It is a b.', answers=['a b'])) == 0.0
    assert metrics.error_rate(example('x b', 'x c', answers=['x b'])) == 50.0
    perfect = example('hello world', 'hello world', lang='fr', target_lang='en')
    assert metrics.error_rate(perfect) == pytest.approx(0.0)


def test_words_of_phrases_are_scored_apart():
    given = [
        example('Call Siobhan now!', 'call Shevaun now', lang='en', phrases=['Siobhan.']),
        example('Call Mary now.', 'Call Mary', lang='en', phrases=['Mary']),
        example('Nobody is named.', 'Nobody is named.', lang='en'),
        example('東京', '東京', lang='ja', phrases=['東京']),
    ]
    given = [{**each, 'id': number} for number, each in enumerate(given)]
    scores = metrics.score(given)['scores']['transcription']
    assert (scores['en']['b_wer'], scores['en']['b_words']) == (50, 2)
    assert (scores['en']['u_wer'], scores['en']['u_words']) == (25, 4)
    assert scores['en']['wer'] == pytest.approx(100 * 2 / 9) and set(scores['en']['intervals']) >= {'b_wer', 'u_wer'}
    assert 'b_wer' not in scores['ja'] and scores['overall']['b_wer'] == 50
    without = [{k: v for k, v in each.items() if k != 'phrases'} for each in given]
    plain = metrics.score(without)['scores']['transcription']['en']
    assert not {'b_wer', 'u_wer'} & set(plain) and plain['wer'] == scores['en']['wer']
    shared = metrics.score(given, others=without)['oracle']['shares']['transcription']['en']
    assert shared['wer'] == 100 and 'b_wer' not in shared
    with pytest.raises(metrics.MetricsError, match="example 'x': field \"phrases\" is 'Siobhan'; a list of texts"):
        metrics.score([example('a', 'b', id='x', phrases='Siobhan')])


def test_examples_of_a_cluster_are_drawn_together():
    """Two endings of which each is right once: who goes by the endings alone is right in one of each pair, for sure."""
    rows = [
        example('a', 'a', id=f'{pair}/{n}', cluster=pair, choices=['a', 'b'], log_likelihoods=[-1, -2], tokens=[1, 1])
        | {'reference': 'ab'[n]}
        for pair in range(20)
        for n in range(2)
    ]
    [scores] = metrics.score(rows)['scores']['choices'].values()
    assert scores['accuracy'] == 50.0 and scores['intervals']['accuracy'] == [50.0, 50.0]
    [alone] = metrics.score([{**row, 'cluster': row['id']} for row in rows])['scores']['choices'].values()
    assert alone['intervals']['accuracy'][0] < 40 < 60 < alone['intervals']['accuracy'][1]
