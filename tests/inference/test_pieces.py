"""Long recordings in pieces, and several in a prompt: each sample is heard once, and each row gets its own."""

import types

import numpy as np
import pytest

from slm_jax.data import prompts
from slm_jax.inference import pieces, queries

WIDTH = 3


class System:
    """Gives a vector for each 1,000 samples: their mean."""

    def __init__(self, piece):
        if piece is not None:
            self.piece = piece

    def listen(self, unused_params, batch):
        samples, lengths = batch['speech_samples'], -(-batch['speech_lengths'] // 1000)
        padded = np.pad(samples, ((0, 0), (0, -samples.shape[1] % 1000))).reshape(len(samples), -1, 1000)
        means = padded.mean(axis=2, dtype=np.float32)
        return np.repeat(means[..., None], WIDTH, axis=2), lengths


def model(piece=None, encoder_seconds=None):
    system, heard = System(piece), []

    def run(name, function, batch):
        heard.append((name, batch['speech_samples'].shape))
        return function(None, batch)

    return types.SimpleNamespace(
        system=system, run=run, heard=heard, encoder_seconds=encoder_seconds, computed_seconds=0.0, row_multiple=1,
        directory=types.SimpleNamespace(name='model'), pieces={},
    )  # fmt: skip


def batch(*recordings):
    """A row for each tuple of lengths; samples tell where they are."""
    rows = []
    for number, lengths in enumerate(recordings):
        samples = np.concatenate([np.full(n, 100 * number + k + 1, np.int16) for k, n in enumerate(lengths)])
        rows.append(queries.Query((5, 6), samples, recordings=lengths if len(lengths) > 1 else ()))
    seconds = max(len(row.samples) for row in rows) / queries.SAMPLE_RATE
    return queries.batch_of(rows, (seconds, 32), len(rows))


def test_what_is_heard_at_once_stays_as_it_is():
    given = batch((16_000,), (9_000,))
    assert pieces.listened(model(), given) is given and pieces.listened(model(piece=1.0), given) is given
    padded = queries.batch_of([queries.Query((5,), np.ones(24_000, np.int16))], (2.0, 32), 1)
    assert pieces.listened(model(piece=1.5), padded)['speech_samples'].shape == (1, 24_000)


def test_a_long_recording_is_heard_in_pieces_and_whole():
    of = model(piece=2.0)
    made = pieces.listened(of, batch((16_000 * 9,), (16_000 * 3,)))
    lengths = made['speech_embedding_lengths']
    # Pieces are cut where it is quietest, so they end at any sample: each may have a vector more than its share.
    assert 144 <= lengths[0, 0] <= 144 + 9 and 48 <= lengths[1, 0] <= 48 + 3
    assert made['speech_samples'].shape == (2, 0) and made['speech_lengths'].tolist() == [16_000 * 9, 16_000 * 3]
    assert made['speech_embeddings'].shape == (2, 192, WIDTH)
    assert {name for name, _ in of.heard} == {'listen'} and max(shape[1] for _, shape in of.heard) == 32_000
    heard = made['speech_embeddings'][0, : lengths[0, 0], 0]
    assert (heard > 0).all() and (made['speech_embeddings'][0, lengths[0, 0] :] == 0).all()
    alone = pieces.listened(model(piece=2.0), batch((16_000 * 9,)))
    np.testing.assert_array_equal(
        alone['speech_embeddings'][0, : lengths[0, 0]], made['speech_embeddings'][0, : lengths[0, 0]]
    )


def test_recordings_of_a_prompt_stay_apart():
    of = model()
    made = pieces.listened(of, batch((3_000, 5_000), (2_000,), (1_000, 1_000, 4_000)))
    assert made['speech_embedding_lengths'].tolist() == [[3, 5, 0], [2, 0, 0], [1, 1, 4]]
    embeddings = made['speech_embeddings'][..., 0]
    assert embeddings[0, :9].tolist() == [1] * 3 + [2] * 5 + [0]
    assert embeddings[1, :3].tolist() == [101, 101, 0] and embeddings[2, :6].tolist() == [201, 202, *[203] * 4]
    assert 'recording_lengths' not in made and {shape[1] for _, shape in of.heard} == {32_000}


def test_recordings_that_are_not_there_are_not_heard():
    of = model()
    rows = [queries.Query((5,), np.ones(3_000, np.int16), recordings=(3_000,))]
    made = pieces.listened(of, queries.batch_of(rows, (0.5, 32), 3))
    assert made['speech_embedding_lengths'].tolist() == [[3], [0], [0]]
    assert [shape for _, shape in of.heard] == [(1, 32_000)]


def test_a_recording_of_several_rows_is_heard_once_and_not_again():
    of = model()
    given = batch((3_000, 5_000), (3_000, 5_000))
    given['speech_samples'][1] = given['speech_samples'][0]
    made = pieces.listened(of, given)
    assert made['speech_embedding_lengths'].tolist() == [[3, 5], [3, 5]]
    np.testing.assert_array_equal(*made['speech_embeddings'])
    assert [shape for _, shape in of.heard] == [(2, 32_000)]
    other = batch((3_000, 5_000), (3_000, 6_000))  # of which only the second row is new
    again = pieces.listened(of, other)
    np.testing.assert_array_equal(again['speech_embeddings'][0, :8], made['speech_embeddings'][0, :8])
    assert len(of.heard) == 2 and len(of.pieces) == 4
    pieces.listened(of, batch((2_000, 1_000)))
    assert len(of.pieces) == 2  # those of the last batch alone are kept


def test_a_system_that_hears_one_recording_says_so():
    of = model()
    of.system = types.SimpleNamespace()
    with pytest.raises(ValueError, match='model hears one recording at a time, and a prompt has several.'):
        pieces.listened(of, batch((3_000, 5_000)))


class Texts:
    """A vocabulary of one token for each text."""

    def __init__(self):
        self.texts = ['', '', '']

    def encode(self, text):
        self.texts += [text] * bool(text)
        return [len(self.texts) - 1] * bool(text)


def test_text_and_speech_take_turns_in_a_prompt():
    for prompt, after in ((prompts.Prompt(), [1]), (prompts.Prompt(chat='<{user}>'), [])):
        vocabulary = Texts()
        ids = prompt.interleaved(vocabulary, ['Q: ', prompts.SPEECH, '\nA: ', 'yes', '\nQ: ', prompts.SPEECH])
        said = [vocabulary.texts[token] if token > 1 else token for token in ids]
        before = '<Q: ' if prompt.chat else 'Q: '
        assert said == [before, -1, '\nA: yes\nQ: ', -1, *(['>'] if prompt.chat else []), *after]
    assert prompts.Prompt().interleaved(None, ['a']) == ()
