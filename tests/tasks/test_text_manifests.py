"""Texts of a manifest translated (task = 'mt'): as T5 reads them, and as a model that knows languages by codes does."""

import pytest
import sentencepiece

import gin
from slm_jax import foundations, tasks
from slm_jax.corpora import tokenizers
from slm_jax.data import json_lines, loader, preprocessors, vocabularies
from slm_jax.importers import mbart

LINES = [
    {'text': 'good morning', 'lang': 'en', 'translation': 'guten Morgen', 'target_lang': 'de'},
    {'text': 'drei neue Nachrichten', 'lang': 'de', 'translation': 'three new messages', 'target_lang': 'en'},
    {'text': 'the line is held', 'lang': 'en', 'translation': "mae'r llinell yn cael ei dal", 'target_lang': 'cy'},
]


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With pairs.jsonl of LINES and the tokenizer of it."""
    folder = tmp_path_factory.mktemp('pairs')
    json_lines.write(folder / 'pairs.jsonl', LINES)
    tokenizers.main([str(folder / 'pairs.jsonl'), str(folder), '--parallel', '--pieces', '60'])
    return folder


def test_the_tokenizer_has_a_code_for_each_language_of_the_manifest(folder):
    card = foundations.card(folder / 'mbart_tiny')
    vocabulary = foundations.vocabulary(folder / 'mbart_tiny')
    assert [*card['languages']] == [*mbart.CODES, 'cy_XX'] and card['swapped'] == [[0, 1], [1, 2]]
    mask = vocabulary.tokenizer.piece_to_id('<mask>')
    assert card['languages']['sl_SI'] + 1 == mask == card['languages']['cy_XX'] - 1 == vocabulary.vocab_size - 2
    assert (vocabulary.tokenizer.pad_id(), vocabulary.eos_id, vocabulary.bos_id, vocabulary.unk_id) == (0, 1, 2, 3)
    ids = [card['languages']['cy_XX'], *vocabulary.encode(LINES[2]['translation']), 1]
    assert vocabulary.decode(ids) == LINES[2]['translation']
    # The reference's file has neither codes nor the mask, and ids of its own.
    content = (folder / 'mbart_tiny' / 'tokenizer.model').read_bytes()
    reference = sentencepiece.SentencePieceProcessor(model_proto=mbart.reference_file(content, len(mbart.CODES) + 2))
    assert [reference.id_to_piece(number) for number in range(3)] == ['<unk>', '<s>', '</s>']
    assert [token + 1 for token in reference.encode('good morning')] == vocabulary.encode('good morning')


def read(name, folder, tmp_path, rows=LINES):
    json_lines.write(tmp_path / 'lines.jsonl', rows)
    tasks.manifest(name, str(tmp_path / 'lines.jsonl'), 'mt')
    return loader.SpeechTextLoader(name, cache_dir=tmp_path / 'cache', seconds_per_batch=8.0)


def test_texts_and_translations_begin_with_codes(folder, tmp_path):
    gin.parse_config(
        f"slm_jax.data.vocabularies.names.llm = '{folder / 'mbart_tiny'}'\n"
        "slm_jax.data.prompts.Prompt.template = '{speech}'"
    )
    vocabulary = vocabularies.of('llm')
    codes, found = vocabulary.languages, {}
    for batch, infos in read('texts_by_code', folder, tmp_path).examples():
        for inputs, targets, info in zip(batch['encoder_input_tokens'], batch['decoder_target_tokens'], infos):
            assert batch['first_tokens'].tolist() == batch['decoder_target_tokens'][:, 0].tolist()
            if info:
                found[info.reference] = inputs[inputs > 0].tolist(), targets[targets > 0].tolist(), info.target_lang
    names = {'en': 'en_XX', 'de': 'de_DE', 'cy': 'cy_XX'}
    assert found == {
        line['translation']: (
            [codes[names[line['lang']]], *vocabulary.encode(line['text']), 1],
            [codes[names[line['target_lang']]], *vocabulary.encode(line['translation']), 1],
            line['target_lang'],
        )
        for line in LINES
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'target_lang': 'is'}, r"lines.jsonl:1: the language model has no code for the language 'is' \(Icelandic\)"),
        ({'lang': 'is'}, r"lines.jsonl:1: the language model has no code for the language 'is' \(Icelandic\)"),
        ({'translation': ''}, r'lines.jsonl:1: field "translation" is missing. There is none into \'de\''),
        ({'text': ''}, r'lines.jsonl:1: field "text" is missing. A task of kind \'mt\' translates it.'),
    ],
)
def test_what_cannot_be_translated_is_refused_before_the_first_step(folder, tmp_path, change, message):
    gin.parse_config(f"slm_jax.data.vocabularies.names.llm = '{folder / 'mbart_tiny'}'")
    with pytest.raises(preprocessors.BadExampleError, match=message):
        read(f'texts_without_{[*change][0]}', folder, tmp_path, [LINES[0] | change, *LINES[1:]])


def test_a_model_without_codes_is_asked_in_words(vocabulary, tmp_path):
    data = read('texts_in_words', None, tmp_path, LINES[:1])
    ((batch, (info, *_)),) = data.examples()
    asked = vocabulary.encode(LINES[0]['text']) + vocabulary.encode(info.instruction)
    tokens = batch['encoder_input_tokens'][0]
    assert 'German' in info.instruction and tokens[tokens > 0].tolist() == [*asked, 1]


def test_recordings_are_not_read_and_other_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="task 'texts_of_tars': task = 'mt' reads text alone, from a manifest"):
        tasks.tars('texts_of_tars', 'a.tar', 'mt')
