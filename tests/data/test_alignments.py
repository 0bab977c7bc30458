"""Alignments of other programs: what is read, and what does not fit."""

import json
import pathlib

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.data import json_lines, loader, manifests
from slm_jax.data.alignments import AlignmentError, letters, spans, token_ends
from slm_jax.data.preprocessors import BadExampleError
from slm_jax.foundations.tokenizers import Bytes
from slm_jax.tasks import registry

TEXT = 'Hello, you two!'
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2.0
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.75
            text = "hello"
        intervals [3]:
            xmin = 1.0
            xmax = 1.25
            text = "you"
        intervals [4]:
            xmin = 1.25
            xmax = 1.75
            text = "two"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2.0
        intervals: size = 2
        intervals [1]:
            xmin = 0.25
            xmax = 0.5
            text = "HH"
        intervals [2]:
            xmin = 0.5
            xmax = 0.75
            text = "OW"
"""
WORDS = [[5, 0.25, 0.75], [3, 1.0, 1.25], [3, 1.25, 1.75]]


def read(given, text=TEXT, seconds=2.0, names=('u1', 'a')):
    return json.loads(spans(str(given), names, text, seconds, 'm.jsonl:3'))


def test_all_kinds_of_files_say_the_same(tmp_path):
    grid = tmp_path / 'a.TextGrid'
    grid.write_text(LONG)
    with_phones = [[5, 0.25, 0.75, 0.5], *WORDS[1:]]
    assert read(grid) == with_phones
    short = '\n'.join(line.partition(' = ')[2] or line.partition('? ')[2] or line.partition(': size = ')[2]
                      for line in LONG.splitlines() if not line.strip().startswith('item'))  # fmt: skip
    grid.write_bytes(short.encode('utf-16'))
    assert read(grid) == with_phones
    ctm = tmp_path / 'all.ctm'
    ctm.write_text(
        ';; by hand\nu0 1 0.0 0.5 no\nu1 1 0.0 0.25 <eps>\n'
        'u1 1 0.25 0.5 hello 0.9\nu1 1 1.0 0.25 you\nu1 1 1.25 0.5 two\n'
    )
    assert read(ctm) == WORDS
    ctm.write_text('a 1 0.0 0.25 SIL\na 1 0.25 0.25 HH_B\na 1 0.5 0.25 OW_E\na 1 1 0.25 Y_S\na 1 1.25 0.5 T_S\n')
    assert read(ctm) == with_phones
    lines = tmp_path / 'a.jsonl'
    pieces = [['▁hel', 0.25, 0.5], ['lo', 0.5, 0.75], [',', 0.75, 0.75], ['▁you', 1, 1.25], ['▁two', 1.25, 1.75]]
    lines.write_text('\n'.join(map(json.dumps, pieces)))
    assert read(lines) == [[3, 0.25, 0.5], [2, 0.5, 0.75], *WORDS[1:]]
    assert read(json.dumps([['sil', 0, 0.25], ['HELLO', 0.25, 0.75], ['you', 1, 1.25], ['two', 1.25, 1.75]])) == WORDS


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('a.ctm', 'u1 1 0.2 0.5 hello\nu1 1 1.0 0.2 me\n', "a.ctm:2: 'me' where the transcript goes on with 'youtwo'"),
        ('a.ctm', 'u1 1 0.2 0.5 hello\n', "a.ctm: it ends where the transcript goes on with 'youtwo'"),
        ('a.ctm', 'u7 1 0.2 0.5 hello\n', "nothing is said of 'u1' or 'a', but of u7. Give the line"),
        ('a.ctm', 'u1 1 x 0.5 hello\n', "a.ctm:1: 'u1 1 x 0.5 hello'; NAME CHANNEL START DURATION WORD was expected"),
        ('a.ctm', 'u1 1 0.2 0.5 hello\nu1 1 1.0 1.5 you\n', "ctm:2: 'you' ends at 2.5 s and the recording has 2.00 s"),
        ('a.ctm', 'u1 1 0.7 0.5 hello\nu1 1 0.5 0.2 you\n', "ctm:2: 'you' from 0.5 s to 0.7 s; it was to begin"),
        ('a.ctm', 'u1 1 0.7 -0.5 hello\n', "a.ctm:1: 'hello' from 0.7 s to 0.2 s; .* not to end before it begins"),
        ('a.ctm', 'u1 1 0.2 0.5 A_S\n', 'a.ctm: its phones are of 1 words and the transcript has 3'),
        ('a.jsonl', '["hello", 0.2, 0.5]\n{"you": 1}\n', r'a.jsonl:2: .*"text", start, end\] was expected'),
        ('a.jsonl', '["hello", 0.2, 0.5]\nyou\n', r"a.jsonl:2: 'you'; \[\"text\", start, end\] was expected"),
        ('a.jsonl', '', 'a.jsonl: the file is empty'),
        ('a.TextGrid', 'hello', "a.TextGrid:1: no TextGrid of Praat: it begins with 'hello'"),
        ('a.TextGrid', LONG[:420], 'a.TextGrid:21: a text in quotation marks was expected. Save the'),
        ('a.TextGrid', LONG.replace('xmax = 0.75', 'xmax = "x"', 1), "a.TextGrid:21: a number was expected, not 'x'"),
        ('a.TextGrid', LONG.replace('"words"', '"tones"'), "a.TextGrid: no tier \"words\", but 'tones', 'phones'"),
        ('a.TextGrid', LONG.replace('"phones"', '"B - words"'), 'a.TextGrid: 2 tiers of words, of several speakers'),
        ('a.TextGrid', LONG.replace('"phones"', '"words"'), 'a.TextGrid: 2 tiers of words, of several speakers'),
        ('a.txt', 'hello', 'a.txt: no alignment by its ending'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_by_its_line(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(AlignmentError, match=words):
        read(tmp_path / name)


def test_what_is_not_there_and_what_is_no_list(tmp_path):
    with pytest.raises(AlignmentError, match='no.ctm: cannot be read'):
        read(tmp_path / 'no.ctm')
    with pytest.raises(AlignmentError, match=r'm.jsonl:3: .*"text", start, end\] was expected'):
        read('[["hello", "0.2", 0.5]]')
    assert manifests.fields({'alignment': '[a].ctm'}, pathlib.Path())['alignment'] == './[a].ctm'  # is no list
    with pytest.raises(manifests.ManifestError, match='field "alignment" is 3; a file or a list'):
        manifests.fields({'audio': 'a.wav', 'alignment': 3}, tmp_path)


def test_the_ends_of_tokens():
    vocabulary = Bytes()
    text = 'ab, c'
    tokens = [*vocabulary.encode(text), vocabulary.eos_id]
    example = {'targets': np.array(tokens), 'alignment': b'[[2, 0.5, 0.9], [1, 1.5, 1.8]]'}
    # a: within the word; b: where it ends, as a comma follows; the comma and the space: where c begins; c; the end.
    np.testing.assert_allclose(token_ends(example, vocabulary), [-0.7, 0.9, 1.5, 1.5, 1.8, 0])
    phones = example | {'alignment': b'[[2, 0.5, 0.9, 0.6], [1, 1.5, 1.8]]'}
    np.testing.assert_allclose(token_ends(phones, vocabulary)[:2], [-0.6, 0.9], rtol=1e-6)
    close = example | {'targets': np.array(vocabulary.encode('ab')), 'alignment': b'[[1, 0, 0.2], [1, 0.4, 0.6]]'}
    np.testing.assert_allclose(token_ends(close, vocabulary), [0.4, 0.6])  # the pause is the first one's
    for alignment in (b'', b'[[9, 0.5, 0.9]]'):
        assert not token_ends(example | {'alignment': alignment}, vocabulary).any()
    assert not token_ends({'targets': np.array(tokens)}, vocabulary).any()


def test_batches_bring_the_ends_of_tokens(manifest, vocabulary, tmp_path):
    rows = [{name: row[name] for name in ('audio', 'text', 'lang')} for row in json_lines.read(manifest)]
    for row in rows[1:]:
        words, seconds = row['text'].split(), soundfile.info(tmp_path / row['audio']).duration
        times = np.linspace(0, seconds, len(words) + 1).tolist()
        row['alignment'] = [list(each) for each in zip(words, times, times[1:])]
    named = tmp_path / 'last.ctm'
    named.write_text(''.join(f'{rows[2]["audio"][:-4]} 1 {s} {e - s} {w}\n' for w, s, e in rows[2]['alignment']))
    rows[2]['alignment'] = named.name
    json_lines.write(manifest, rows)
    registry.manifest('aligned', manifest)
    try:
        data = loader.SpeechTextLoader('aligned', seconds_per_batch=8.0, cache_dir=tmp_path / 'cache', token_ends=True)
        found = {}
        for batch, infos in data.examples():
            assert batch['token_ends'].shape == batch['decoder_target_tokens'].shape
            assert data.batch_shapes()[0]['token_ends'][1] == batch['token_ends'].dtype == np.float32
            names = ('token_ends', 'decoder_target_tokens', 'speech_lengths')
            for info, *row in zip(infos, *map(batch.get, names)):
                if info:
                    found[info.audio] = row
        assert data.some_examples()['token_ends'].any()  # the first example has no alignment, and others have
        source = registry.sources.ManifestSource({'train': str(manifest)})
        before = source.state('train')
        named.write_text(f'{rows[2]["audio"][:-4]} 1 0 99 {rows[2]["text"].split()[0]}\n')
        assert source.state('train') != before  # the store is made anew
        with pytest.raises(BadExampleError, match=r"last.ctm:1: '.*' ends at 99 s and the recording has [\d.]+ s"):
            loader.SpeechTextLoader('aligned', seconds_per_batch=8.0, cache_dir=tmp_path / 'cache', token_ends=True)
    finally:
        seqio.TaskRegistry.remove('aligned')
    assert not found[str(tmp_path / rows[0]['audio'])][0].any()
    for row in rows[1:]:
        ends, tokens, samples = found[str(tmp_path / row['audio'])]
        count = np.sum(tokens > 1)
        exact = np.abs(ends[:count])
        assert np.all(exact > 0) and not np.any(ends[count:]) and np.all(np.diff(exact) >= -1e-6)
        words = row['text'].split()
        heard = [number for number, word in enumerate(words, 1) if letters(word)]
        assert np.sum(ends > 0) >= len(heard)
        np.testing.assert_allclose(exact[-1], samples / 16_000 * heard[-1] / len(words), atol=2e-3)
