"""Metrics against values computed by hand and against the libraries' own calls."""

import jiwer
import pytest
import sacrebleu

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


def test_word_errors_by_hand():
    # One substitution and one deletion in 3 words; one insertion in 2: 3 errors in 5 words.
    result = metrics.word_errors(['the cat sat', 'a dog'], ['the hat', 'a big dog'])
    assert result == {'wer': 60.0, 'words': 5, 'substitutions': 1, 'deletions': 1, 'insertions': 1}


def test_word_error_rate_is_of_the_corpus_not_a_mean_of_sentences():
    references, predictions = ['a', 'b c d e f g h i j'], ['x', 'b c d e f g h i j']
    assert metrics.word_errors(references, predictions)['wer'] == pytest.approx(10.0)
    assert metrics.word_errors(references, predictions)['wer'] == pytest.approx(
        100 * jiwer.wer(references, predictions)
    )


def test_character_errors_by_hand():
    result = metrics.character_errors(['abcd'], ['abxd'])
    assert result == {'cer': 25.0, 'characters': 4}
    assert metrics.character_errors(['ab cd'], [''])['cer'] == 100.0


def test_an_empty_prediction_is_all_deletions():
    result = metrics.word_errors(['one two'], [''])
    assert (result['wer'], result['deletions']) == (100.0, 2)


def test_bleu_and_chrf_are_sacrebleus():
    references = ['The cat is on the mat today.', 'There is a house by the sea.']
    predictions = ['The cat is on the mat now.', 'There is a home by the sea.']
    value, signature = metrics.bleu(references, predictions, 'en')
    assert value == sacrebleu.corpus_bleu(predictions, [references]).score
    assert 'tok:13a' in signature and 'version:' in signature
    value, signature = metrics.chrf(references, predictions)
    assert value == sacrebleu.corpus_chrf(predictions, [references]).score
    assert 'nc:6' in signature


def test_bleu_tokenizer_follows_the_target_language():
    assert 'tok:zh' in metrics.bleu(['你好世界'], ['你好世界'], 'zh-CN')[1]
    assert 'tok:char' in metrics.bleu(['こんにちは'], ['こんにちは'], 'ja')[1]
    assert metrics.bleu(['我们今天去学校'], ['我们今天去学校'], 'zh')[0] == pytest.approx(100.0)


def test_slot_f1_by_hand():
    #             right    wrong value  missed   invented  rightly none
    references = ['large', 'small', 'medium', 'none', 'none']
    predictions = ['large', 'large', 'none', 'large', '']
    # tp 1, fp 2 (wrong, invented), fn 2 (wrong, missed).
    result = metrics.slot_f1(references, predictions)
    assert result['precision'] == pytest.approx(100 / 3)
    assert result['recall'] == pytest.approx(100 / 3)
    assert result['f1'] == pytest.approx(100 / 3)
    assert result['accuracy'] == pytest.approx(40.0)


def test_slot_f1_of_nothing():
    assert metrics.slot_f1(['none'], ['none'])['f1'] == 100.0
    assert metrics.slot_f1(['large'], ['none']) == {
        'f1': 0.0,
        'precision': 0.0,
        'recall': 0.0,
        'accuracy': 0.0,
    }


def test_kind_and_group():
    assert metrics.kind_of({'lang': 'fr'}) == 'transcription'
    assert metrics.kind_of({'lang': 'en-US', 'target_lang': 'en'}) == 'transcription'
    assert metrics.group_of({'lang': 'fr', 'target_lang': 'en'}) == 'fr-en'
    assert metrics.group_of({'lang': 'en', 'slot': 'size'}) == 'size'
    assert metrics.group_of({'lang': None}) == 'unknown'


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
    with pytest.raises(metrics.MetricsError, match='1 for 2 references'):
        metrics.word_errors(['a', 'b'], ['a'])
    with pytest.raises(metrics.MetricsError, match='empty at positions'):
        metrics.word_errors(['a', ''], ['a', 'b'])


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
    perfect = example('hello world', 'hello world', lang='fr', target_lang='en')
    assert metrics.error_rate(perfect) == pytest.approx(0.0)
