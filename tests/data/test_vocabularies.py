"""Labels of an adapter's CTC head, as a card's configuration has them."""

import collections

import pytest
import tokenizers

import gin
from slm_jax.corpora import token_counts
from slm_jax.data import vocabularies
from slm_jax.foundations.tokenizers import HuggingFace

TEXT = ','.join(f'{token}:{token % 7}' for token in range(2, 3000, 13))


def test_labels_are_one_line_of_gin_and_come_back_from_a_card():
    gin.clear_config()
    gin.parse_config(
        f"""
        LABELS = '{TEXT}'
        counted_tokens.labels = %LABELS
        label_counts.labels = %LABELS
        """
    )
    card = gin.config_str()
    gin.clear_config()
    gin.parse_config(card)
    assert f"LABELS = \\\n    '{TEXT}'" in card
    assert vocabularies.counted_tokens() == (-1, *range(2, 3000, 13))
    assert vocabularies.label_counts() == tuple(token % 7 for token in range(2, 3000, 13))
    gin.clear_config()


def test_where_a_tokenizer_was_looked_for_is_named(monkeypatch):
    monkeypatch.setattr(vocabularies, 'names', lambda: {'llm': 'nowhere'})
    with pytest.raises(ValueError, match="vocabularies.names.llm, whose tokenizer is read: No foundation 'nowhere'"):
        vocabularies.of('llm')


@pytest.mark.parametrize('text', ['', '5', '5:', '5:1,', '1:3', '0:3', '5:-1', '-5:1', '5:1;6:1', '5:1 6:1', '5:1.5'])
def test_what_is_no_label_is_named(text):
    for read in (vocabularies.counted_tokens, vocabularies.label_counts):
        with pytest.raises(ValueError, match='LABELS: .* is no TOKEN:COUNT.*Write the file again with `python -m'):
            read(text)


def test_a_token_has_one_count():
    with pytest.raises(ValueError, match='LABELS has the token 6 twice. Write the file again'):
        vocabularies.counted_tokens('5:1,6:2,6:3')


@pytest.fixture
def bpe(monkeypatch):
    """BPE of a few letters, in which 0 and 1 have changed places with 9 and 10."""
    pieces = ['h', 'a', 'l', 'o', 'ha', 'lo', 'halo', 'x', 'hah', '<pad>', '<end>']
    merges = [('h', 'a'), ('l', 'o'), ('ha', 'lo'), ('ha', 'h'), ('hal', 'o')]
    ids = {piece: number for number, piece in enumerate(pieces)} | {'hal': 11}
    content = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges)).to_str().encode()
    found = HuggingFace(content, [[0, 9], [1, 10]])
    monkeypatch.setattr(vocabularies, 'of', lambda part: found)
    return found


def test_a_token_that_is_no_label_is_spelt_by_what_bpe_merges_into_it(bpe):
    assert bpe.parts == {4: (9, 10), 5: (2, 3), 6: (4, 5), 8: (4, 9)}  # by the first of two ways
    spellings = vocabularies.spellings('9:3,10:3,2:1,3:1,5:6')
    assert spellings[9] == (1,) and spellings[5] == (5,)
    assert spellings[4] == (1, 2) and spellings[6] == (1, 2, 5) and spellings[8] == (1, 2, 1)
    assert spellings[7] == spellings[11] == () == spellings[0] and len(spellings) == bpe.vocab_size
    assert vocabularies.spellings('9:3,2:1,3:1')[6] == ()  # a letter is lacking
    with pytest.raises(ValueError, match='LABELS has the token 99 and the tokenizer of .* has 12: they are of another'):
        vocabularies.spellings('9:3,99:1')


def test_what_is_met_seldom_is_counted_as_its_parts(bpe):
    counts = collections.Counter({6: 1, 5: 4, 4: 2, 7: 1, 8: 1, 3: 1})
    assert token_counts.spelt(counts, bpe.parts, 1) == counts
    spelt = token_counts.spelt(counts, bpe.parts, 5)
    assert spelt == {5: 5, 9: 1 + 4, 10: 4, 7: 1, 3: 1}  # 'ha', met four times with its compounds, is two letters
    assert sum(spelt.values()) == 16


def test_tokens_for_an_aligner_are_labels_parts_or_any(bpe):
    found = vocabularies.token_spellings('9:3,10:3,2:1,3:1,5:6')
    assert found[:2] == ((), ()) and len(found) == bpe.vocab_size
    assert found[8:10] == ((1, 2, 1), (1,)) and found[7] == found[11] == (-1,)


def test_the_characters_of_tokens(vocabulary):
    characters = "abcdefghijklmnopqrstuvwxyz'"
    found = vocabularies.character_spellings(characters)

    def said(text):
        labels = [label for token in vocabulary.encode(text) for label in found[token]]
        return ''.join({-1: '?', 1: ' '}.get(label) or characters[label - 2] for label in labels)

    assert len(found) == vocabulary.vocab_size and found[0] == found[1] == ()
    assert ' '.join(said("He said: 'yes' - no!").split()) == 'he said yes no'
    assert ' '.join(said('café so').split())[:4] == 'caf?'
    for wrong in ('abca', 'aB', 'a b'):
        with pytest.raises(ValueError, match='small letters, digits and an apostrophe were expected, each once'):
            vocabularies.character_spellings(wrong)
