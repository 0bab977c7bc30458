"""When words are said: which labels are theirs, what becomes of their times, subtitles; and of real speech (slow)."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest
import soundfile

from slm_jax import infer
from slm_jax.corpora import phones
from slm_jax.data import vocabularies
from slm_jax.encoders.spelling import Spelling
from slm_jax.inference import chunks, rendering, words
from slm_jax.inference.words import Word

SENTENCES = ['Please hold the line.', 'You have three new messages.', 'I would like a large coffee - with milk.']


def aligner(times=None, spelt=None, **system):
    """Of a model with a tokenizer of one token a letter, whose labels begin and end when `times` says."""
    system = types.SimpleNamespace(spelt=spelt, speech_encoder=types.SimpleNamespace(ctc_vocab_size=9), **system)
    vocabulary = types.SimpleNamespace(encode=lambda text: [ord(letter) for letter in text])
    found = words.CtcAligner(types.SimpleNamespace(system=system, text_vocabulary=vocabulary))
    found.__dict__['_times'] = lambda params, batch: times
    return found


@pytest.mark.parametrize('prefix', ['', '▁'])
def test_labels_of_words_by_the_encoders_tokenizer(prefix, monkeypatch):
    ids = {'▁': 3, ' ': 3, 'a': 5, 'b': 6}

    def encode(text):
        return [ids.get(letter, 2) for letter in f'{prefix}{text}'] if text else []

    tokenizer = types.SimpleNamespace(encode=encode, unk_id=lambda: 2, piece_to_id=ids.get)
    monkeypatch.setattr(
        vocabularies, 'of', lambda part: {'speech_encoder': types.SimpleNamespace(tokenizer=tokenizer)}[part]
    )
    found = list(aligner()._labels(['–', 'A,', '-', 'Bö!', 'a-b']))
    # Nothing is heard before the first word, nor of a dash; what the tokenizer does not know may be any label.
    assert found == [(1, 5), (-1, 3), (3, 6), (3, -1), (-1, 3), (4, 5), (4, 3), (4, 6)]


def test_labels_of_words_by_the_adapters_head():
    spelt = np.zeros((128, 2), int)
    spelt[ord('a')], spelt[ord(' ')], spelt[ord('b'), 0] = (4, 7), (9, 0), -1
    assert list(aligner(spelt=spelt)._labels(['a', 'b.'])) == [(0, 4), (0, 7), (1, 9), (1, -1)]


def test_labels_of_words_by_an_aligners_head():
    """A mark between words is nobody's, and stands there once."""
    spelling = Spelling(by_token=tuple((1,) if c == 32 else (c,) * (c > 96) for c in range(128)), between=1)
    found = list(aligner(spelling=spelling)._labels(['-', 'ab', '-', 'c.']))
    assert found == [(1, 97), (1, 98), (-1, 1), (3, 99)]


def test_times_of_words():
    spelt = [(1, 5), (1, 6), (-1, 3), (3, 6)]
    starts, stops = np.array([0.2, 0.4, 0.6, 0.88, np.nan]), np.array([0.3, 0.5, 0.7, 1.0, np.nan])
    found = list(words._timed(['–', 'ab', '–', 'b'], spelt, starts, stops))
    assert found == [Word('–', 0.0, 0.0), Word('ab', 0.12, 0.5), Word('–', 0.5, 0.5), Word('b', 0.8, 1.0)]
    assert found[1].later(30.0) == Word('ab', 30.12, 30.5)
    assert list(words._timed(['a'], [(0, 5)], np.array([np.nan]), np.array([np.nan]))) == []
    assert list(words._timed([], [], np.array([np.nan]), np.array([np.nan]))) == []


def test_cues_end_with_a_sentence_after_a_pause_and_before_they_are_long():
    long = [(f'{"x" * 9}{i}', 3 + 0.4 * i) for i in range(12)]
    said = [('One.', 0.0), ('Two', 0.5), ('three', 2.0), ('four', 2.4), *long]
    said = [Word(text, start, start + 0.3) for text, start in said]
    found = words.cues(said)
    assert [cue.text for cue in found][:2] == ['One.', 'Two']
    assert found[2].text.startswith('three four') and found[2].start == 2.0
    assert all(len(cue.text) <= 84 and cue.end - cue.start <= 7 for cue in found)
    assert ' '.join(cue.text for cue in found).split() == [word.text for word in said]
    assert words.cues([]) == []


def test_a_recording_with_words():
    said = [[Word('a', 0.1, 0.2)], [Word('b', 0.0, 0.3)]]
    recording = infer.Recording('x.wav', '', True, False, [(0.0, 2.0), (2.0, 4.0)], ['a', 'b'], said, ['', ''])
    line = json.loads(rendering.render(recording, 'json', False, True))
    assert line['words'] == [{'word': 'a', 'start': 0.1, 'end': 0.2}, {'word': 'b', 'start': 2.0, 'end': 2.3}]
    assert '00:00:00,100 --> 00:00:00,200\na\n' in rendering.render(recording, 'srt', False, True)
    assert '00:00:02.000 --> 00:00:02.300\nb\n' in rendering.render(recording, 'vtt', False, True)


def test_a_piece_whose_words_have_no_times_is_a_subtitle_itself():
    said = [[Word('a', 0.1, 0.2)], [], [Word('c', 0.5, 0.6)], [], [Word('d', 0.1, 0.3)], [Word('e', 0.0, 0.1)]]
    pieces = [chunks.Chunk(float(number), number + 1.0, text) for number, text in enumerate('a b c _ d e'.split())]
    found = words.subtitles(pieces, said)
    assert [(cue.start, cue.text) for cue in found] == [(0.1, 'a'), (1.0, 'b'), (2.5, 'c'), (3.0, '_'), (4.1, 'd e')]


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ((), '--word_times: give --format json, srt or vtt'),
        (
            ('--format', 'json', '--chunk_seconds', '9', '--overlap', '1'),
            'and no --overlap, in which words are heard twice',
        ),
        (('--format', 'json', '--instruction', 'Say it in Greek.'), "'Say it in Greek.' is no transcript"),
        (('--format', 'json', '--model', 't5_tiny'), 'a language model alone hears nothing'),
    ],
)
def test_where_there_are_no_words(options, match, tmp_path, capsys):
    soundfile.write(tmp_path / 'a.wav', np.zeros(8000, np.int16), 16_000)
    assert infer.main([str(tmp_path / 'a.wav'), '--model', 'slm_tiny', '--word_times', *options]) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ('head', 'spelt', 'kind'),
    [(9, None, words.CtcAligner), (None, [[1]], words.CtcAligner), (None, None, words.AttentionAligner)],
)
def test_attention_tells_where_no_ctc_does(head, spelt, kind):
    encoder, adapter = types.SimpleNamespace(ctc_vocab_size=head), types.SimpleNamespace(spans=None)
    system = types.SimpleNamespace(spelt=spelt, speech_encoder=encoder, adapter=adapter)
    assert isinstance(words.aligner(types.SimpleNamespace(system=system)), kind)


def test_what_an_answer_begins_with_is_no_word():
    """As the code of its language, which an mBART writes first."""
    targets = []

    def attention(params, batch):
        targets.append(batch['decoder_target_tokens'])
        weights = np.full((1, 2, 64, 8), 1e-3)
        for token in range(4):
            weights[0, 0, 1 + token, 2 * token] = weights[0, 1, token, 2 * token] = 1.0
        weights[0, 0, 0, 7] = 1.0
        spans = np.broadcast_to(0.2 * np.stack([np.arange(8), np.arange(1, 9)])[:, None], (2, 2, 8))
        return weights, spans, np.array([8, 8])

    vocabulary = types.SimpleNamespace(
        encode=lambda text: [ord(letter) for letter in text], decode=lambda tokens: ''.join(map(chr, tokens))
    )
    model = types.SimpleNamespace(
        system=types.SimpleNamespace(attention=attention), params=None, text_vocabulary=vocabulary,
        mesh=jax.sharding.Mesh(jax.devices()[:1], ('data',)), placed=lambda batch: batch,
        program=lambda name, function, given, out: function,
    )  # fmt: skip
    batch = {'speech_lengths': np.array([9, 9]), 'first_tokens': np.array([7, 0])}
    begun, free = words.AttentionAligner(model).words(batch, ['a b', 'a b'])
    assert begun == free and [word.text for word in free] == ['a', 'b'] and free[0].end < free[1].start
    [written] = targets
    assert written[:, :6].tolist() == [[7, 97, 32, 98, 1, 0], [97, 32, 98, 1, 0, 0]]


def test_a_model_that_cannot_say_when():
    system = types.SimpleNamespace(spelt=None, speech_encoder=types.SimpleNamespace(ctc_vocab_size=None))
    said = 'mine has no CTC head, and no adapter with `spans`, which tell when words are said. Give --model one'
    with pytest.raises(ValueError, match=said):
        words.aligner(types.SimpleNamespace(system=system, directory=pathlib.Path('mine')))


@pytest.mark.slow
@pytest.mark.parametrize('model', ['usm_tiny', 'slm_tiny'])
def test_words_are_where_the_synthesiser_says(model, tmp_path, capsys):
    try:
        clips = [(clip.samples, clip.words) for clip in phones.spoken('en-us', SENTENCES)]
    except ValueError as error:
        pytest.skip(f'the synthesiser of known times: {error}')
    files = [tmp_path / f'{number}.wav' for number in range(len(clips))]
    for file, (samples, _) in zip(files, clips):
        soundfile.write(file, samples, 16_000)
    assert infer.main([*map(str, files), '--model', model, '--word_times', '--format', 'json']) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    errors = []
    for line, (_, begun) in zip(lines, clips, strict=True):
        assert [word['word'] for word in line['words']] == line['text'].split()
        flat = [line['words'][0]['start'], *(word['end'] for word in line['words'])]
        assert flat == sorted(flat) and flat[-1] <= line['duration'] + 0.1
        if len(line['words']) == len(begun):
            errors += [abs(word['start'] - start) for word, start in zip(line['words'], begun)]
    assert (
        len(errors) >= 4 and np.median(errors) < 0.2
    )  # of this voice it writes late: tests/benchmarks/bench_word_times
