"""Tokens to labels and labels to tokens, against plain Python."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.encoders.spelling import Spelling

# Labels: 1 between words, 2 a, 3 b, 4 c. Tokens: 2 'a', 3 ' a', 4 'ab', 5 ' abc', 6 ',', 7 'b', 8 'c', 9 of a letter
# that is no label and a, 10 'ab' again, 11 ' '.
SPELLING = Spelling(((), (), (2,), (1, 2), (2, 3), (1, 2, 3, 4), (), (3,), (4,), (-1, 2), (2, 3), (1,)), between=1)


def spelt(text):
    words = ' '.join(str(label) for token in text for label in SPELLING.by_token[token])
    return [int(label) for label in re.sub('^(1 ?)+|( 1)+$', '', re.sub('(1 )+', '1 ', words)).split()]


def test_a_transcript_in_labels_and_where_its_tokens_are():
    texts = [[3, 6, 5, 7], [6, 2, 9], [6, 6], [], [11, 7, 11, 6, 3], [7, 11, 8, 11]]
    tokens = np.full((6, 5), 8)  # what stands in the padding
    counts = [len(text) for text in texts]
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    found = jax.jit(SPELLING.spell, static_argnums=2)(jnp.array(tokens), jnp.array(counts), 20)
    for row, text in enumerate(texts):
        labels = found.labels[row].tolist()
        assert labels[: len(spelt(text))] == spelt(text) and not any(labels[len(spelt(text)) :])
    assert found.heard.astype(int).tolist() == [
        *([1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5, [0, 1, 0, 0, 1], [1, 0, 1, 0, 0])
    ]
    assert found.firsts[0, 0] == found.lasts[0, 0] == 0  # the mark in front of the first word is not heard
    assert (found.firsts[0, 2], found.lasts[0, 2]) == (2, 4)  # behind the mark of its own
    assert (found.firsts[1, 2], found.lasts[1, 2]) == (1, 2)
    assert (found.firsts[4, 4], found.lasts[4, 4], found.lasts[5, 2]) == (2, 2, 2)
    assert SPELLING.spell(jnp.array(tokens), jnp.array(counts), 3).labels.shape == (6, 3)


def test_labels_are_read_as_the_longest_tokens():
    texts = [[2, 1, 2, 3, 4, 1, 2, 4, 0], [2, 3, 3, 4, 4, 4, 2, 3, 2], [4, 1, 4, *[0] * 6], [0] * 9]
    tokens, count, found = jax.jit(SPELLING.read)(jnp.array(texts))
    # No token is ' c', so the mark before it is one by itself.
    expected = [
        ([2, 5, 3, 8], [0, 2, 6, 7], [0, 4, 6, 7]),
        ([4, 7, 8, 8, 8, 4, 2], [0, 2, 3, 4, 5, 6, 8], [1, 2, 3, 4, 5, 7, 8]),
        ([8, 11, 8], [0, 2, 2], [0, 1, 2]),
        ([], [], []),
    ]
    for row, (text, firsts, lasts) in enumerate(expected):
        n = len(text)
        assert count[row] == n and tokens[row, :n].tolist() == text and not np.any(tokens[row, n:])
        assert found.firsts[row, :n].tolist() == firsts and found.lasts[row, :n].tolist() == lasts
        assert found.heard[row].tolist() == [token != 11 for token in text] + [False] * (9 - n)


def test_each_token_may_be_a_label():
    spelling = Spelling(vocab_size=9)
    texts = jnp.array([[5, 6, 5, 0], [7, 0, 0, 0]])
    assert spelling.num_labels == 9
    found = spelling.spell(texts, jnp.array([3, 1]), 9)
    np.testing.assert_array_equal(found.labels, texts)
    tokens, count, _ = spelling.read(texts)
    np.testing.assert_array_equal(tokens, texts)
    assert count.tolist() == [3, 1] and spelling.label_alone.tolist() == spelling.alone.tolist() == list(range(9))
    assert SPELLING.alone.tolist() == [0, 11, 2, 7, 8]
    assert SPELLING.label_alone.tolist() == [0, 0, 2, 0, 0, 0, 0, 3, 4, 0, 0, 1]
    with pytest.raises(ValueError, match='Spelling wants either by_token'):
        Spelling()
