"""Unit files of every kind say the same; what cannot be used is named by file, line and remedy."""

import json

import numpy as np
import pytest

from slm_jax.codebooks import unit_files
from slm_jax.codebooks.unit_files import UnitError
from slm_jax.data import json_lines

TWO = np.array([[5, 9, 9], [0, 7, 1]])


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        text = '\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text(text + '\n')
        return tmp_path / name

    return write


def test_all_formats_say_the_same(write, tmp_path):
    np.save(tmp_path / 'a.npy', np.array([5, 9, 9], np.int64))
    np.savez(tmp_path / 'all.npz', a=np.array([5, 9, 9], np.uint16))
    (tmp_path / 'folder').mkdir()
    np.save(tmp_path / 'folder/a.npy', np.array([5, 9, 9]))
    files = [write('u.jsonl', {'id': 'a', 'units': [5, 9, 9]}), write('u.txt', 'a\t5 9 9')]
    files += [tmp_path / name for name in ('a.npy', 'all.npz', 'folder')]
    for file in files:
        (found,) = unit_files.read(file, 10)
        assert (found.id, found.units.tolist(), found.durations) == ('a', [5, 9, 9], None)
    ours = {'id': 'a', 'units': [5, 9], 'durations': [1, 2], 'text': 'hello', 'codebook': 'w@1'}
    (found,) = unit_files.read(write('own.jsonl', ours), 10, label='w@1')
    assert found.durations.tolist() == [1, 2] and found.row['text'] == 'hello'


def test_codebooks_of_a_frame_become_neighbours_in_one_vocabulary(write, tmp_path):
    np.save(tmp_path / 'mimi.npy', TWO)
    for file in (tmp_path / 'mimi.npy', write('mimi.jsonl', {'id': 'mimi', 'units': TWO.tolist()})):
        (found,) = unit_files.read(file, 10, codebooks=2)
        assert found.units.tolist() == [5, 10, 9, 17, 9, 11]
        np.testing.assert_array_equal(unit_files.unflatten(found.units, 10, 2), TWO)
    with pytest.raises(UnitError, match='mimi.npy: has 2 codebooks a frame, and 1 were expected'):
        list(unit_files.read(tmp_path / 'mimi.npy', 10))
    with pytest.raises(UnitError, match='not those of 2 codebooks of 10 in turn'):
        unit_files.unflatten(np.array([5, 9]), 10, 2)


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ({'id': 'a', 'units': [3, 10]}, 'u.jsonl:2: unit 10 is out of range: the codebook has 10, 0 to 9. Give'),
        ({'id': 'a', 'units': [-1]}, 'unit -1 is out of range'),
        ({'id': 'a', 'units': [0.5]}, r'"units" is \[0.5\]; a list of whole numbers'),
        ({'id': 'a', 'units': 'x'}, '"units" is x; a list'),
        ({'id': 'a', 'units': [[1, 2], [3]]}, 'all of one length'),
        ({'id': 'a'}, 'u.jsonl:2: the line has no "units". Write them by'),
        ({'id': 'a', 'units': [1, 2], 'durations': [3]}, '"durations" does not give each of its 2 units'),
        ({'id': 'a', 'units': [1], 'durations': [0]}, 'a whole number of frames from 1 on'),
        (
            {'id': 'a', 'units': [1], 'codebook': 'usm@2'},
            'are of the codebook usm@2, and those of whisper@1 are wanted',
        ),
        ('{"id": ', r'u.jsonl:2: not JSON'),
    ],
)
def test_units_that_cannot_be_used_are_named(write, line, said):
    with pytest.raises(UnitError, match=said):
        list(unit_files.read(write('u.jsonl', {'id': 'good', 'units': [1]}, line), 10, label='whisper@1'))


def test_files_that_are_none_are_named(write, tmp_path):
    for file, said in (
        (write('u.txt', 'a\t1 2', 'b\t1 x'), 'u.txt:2: "id<TAB>1 2 3" was expected'),
        (write('u.npy', 'no array'), 'u.npy: cannot be read as arrays'),
        (write('u.wav', ''), 'u.wav: files of units end in .jsonl, .txt'),
    ):
        with pytest.raises(UnitError, match=said):
            list(unit_files.read(file, 10))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UnitError, match='empty: the folder has no .npy'):
        list(unit_files.read(tmp_path / 'empty', 10))


def test_an_image_of_another_size_is_refused(write):
    file = write('i.jsonl', {'id': 'a', 'tokens': [[1, 2, 3], [3, 4, 5]]}, {'id': 'b', 'tokens': [1, 2, 3, 3, 4, 5]})
    for found in unit_files.read(file, 10, field=unit_files.TOKENS):
        assert found.units.tolist() == [1, 2, 3, 3, 4, 5]
        unit_files.check_image(found, 'i.jsonl', (2, 3))
    with pytest.raises(UnitError, match=r"i.jsonl: b has 6 tokens, and the model's images have 4 x 4. Give"):
        unit_files.check_image(found, 'i.jsonl', (4, 4))
    first = next(unit_files.read(file, 10, field=unit_files.TOKENS))
    with pytest.raises(UnitError, match='a has 2 x 3 tokens, and .* 3 x 2'):
        unit_files.check_image(first, 'i.jsonl', (3, 2))


def test_the_same_sentences_in_two_languages_are_joined(write, tmp_path):
    english = {'audio': 'a.wav', 'text': 'one', 'lang': 'en', 'codebook': 'whisper@1'}
    source = write('en.jsonl', {'id': 'a', 'units': [1, 2], **english}, {'id': 'z', 'units': [3]})
    target = write('de.jsonl', {'id': 'b', 'units': [7]}, {'id': 'a', 'units': [5], 'lang': 'de', 'text': 'eins'})
    out = tmp_path / 'both/units.jsonl'
    assert unit_files.pair(source, target, out) == {'pairs': 1, 'alone': ['z']}
    joined = {'target_units': [5], 'target_lang': 'de', 'translation': {'de': 'eins'}}
    assert json_lines.read(out) == [{'id': 'a', **english, 'audio': '../a.wav', 'units': [1, 2], **joined}]
    assert unit_files.pair(write('en.txt', 'a\t1 2'), write('de.txt', 'a\t5'), out)['pairs'] == 1
    assert json_lines.read(out) == [{'id': 'a', 'units': [1, 2], 'target_units': [5]}]


@pytest.mark.parametrize(
    ('source', 'target', 'said'),
    [
        ({'id': 'a'}, {'codebook': 'usm@2'}, """en.jsonl:1: its "codebook" is 'w@1', and .*de.jsonl:1 is of 'usm@2'"""),
        ({'id': 'a', 'target_lang': 'fr'}, {}, """its "target_lang" is 'fr', and .*de.jsonl:1 is of 'de'. Give"""),
        ({'id': 'z'}, {}, 'out.jsonl: no line of .*en.jsonl has an id that .*de.jsonl has. Name a sentence alike'),
        ({}, {}, 'en.jsonl:1: the line has no "id", which says'),
        ({'id': 'a'}, {'units': 'x'}, 'de.jsonl:1: "units" is x; a list'),
    ],
)
def test_what_cannot_be_joined_is_named(write, tmp_path, source, target, said):
    english = write('en.jsonl', {'units': [1], 'codebook': 'w@1', **source})
    german = write('de.jsonl', {'id': 'a', 'units': [2], 'codebook': 'w@1', 'lang': 'de', **target})
    with pytest.raises(UnitError, match=said):
        unit_files.pair(english, german, tmp_path / 'out.jsonl')
    twice = write('twice.jsonl', {'id': 'a', 'units': [2]}, {'id': 'a', 'units': [3]})
    with pytest.raises(UnitError, match="twice.jsonl:2: the id 'a' stands at .*twice.jsonl:1 too"):
        unit_files.pair(english, twice, tmp_path / 'out.jsonl')
    assert not (tmp_path / 'out.jsonl').exists()


def test_units_of_other_programs_stand_on_the_lines_of_a_manifest(write, tmp_path):
    (tmp_path / 'mimi').mkdir()
    for name in ('a', 'b'):
        np.save(tmp_path / f'mimi/{name}.npy', TWO)
    manifest = write('m.jsonl', {'audio': 'a.wav', 'text': 'one', 'lang': 'en'}, {'id': 'z', 'text': 'two'})
    out = tmp_path / 'new/units.jsonl'
    assert unit_files.beside(tmp_path / 'mimi', manifest, out, 10, codebooks=2) == {'lines': 1, 'alone': ['z']}
    line = {'id': 'a', 'audio': '../a.wav', 'text': 'one', 'lang': 'en', 'units': [5, 10, 9, 17, 9, 11]}
    assert json_lines.read(out) == [line]
    pictures = write('p.jsonl', {'image': 'a.png', 'caption': 'a line'})
    assert unit_files.beside(tmp_path / 'mimi', pictures, out, 10, field=unit_files.TOKENS)['lines'] == 1
    picture = {'id': 'a', 'image': '../a.png', 'caption': 'a line', 'tokens': TWO.tolist()}
    assert json_lines.read(out) == [picture]
    own = write('own.jsonl', {'id': 'z', 'units': [5, 9], 'durations': [1, 2]})
    unit_files.beside(own, manifest, out, 10)
    assert json_lines.read(out) == [{'id': 'z', 'text': 'two', 'units': [5, 9], 'durations': [1, 2]}]
    for units, said in (
        (write('a.txt', 'a\t1', 'a\t2'), "a.txt: it has the id 'a' twice"),
        (write('b.txt', '1 2'), 'the line has no "id"'),
        (write('c.txt', 'c\t1'), "c.txt has no id of .*m.jsonl, as 'a'. Name them alike"),
        (write('d.txt', 'a\t10'), 'd.txt:1: unit 10 is out of range'),
    ):
        with pytest.raises(UnitError, match=said):
            unit_files.beside(units, manifest, tmp_path / 'no.jsonl', 10)
    assert not (tmp_path / 'no.jsonl').exists()


def test_an_array_of_an_image_of_another_shape_is_refused(tmp_path):
    np.save(tmp_path / 'a.npy', TWO)
    (found,) = unit_files.read(tmp_path / 'a.npy', 10, field=unit_files.TOKENS)
    with pytest.raises(UnitError, match='a has 2 x 3 tokens, and .* 3 x 2'):
        unit_files.check_image(found, 'a.npy', (3, 2))


def test_what_a_model_writes_is_read_as_units(write):
    asked = {'instruction': 'Hold on.', 'reference': '5'}
    file = write('p.jsonl', {'id': 'a', 'prediction': '5 9', **asked}, {'id': 'b', 'prediction': '', **asked})
    found = [*unit_files.read(file, 10)]
    assert [each.units.tolist() for each in found] == [[5, 9], []] and found[0].row['text'] == 'Hold on.'
    (other,) = unit_files.read(write('s.jsonl', {'prediction': '5', 'instruction': '1 2'}), 10)  # speech to speech
    assert 'text' not in other.row
    with pytest.raises(UnitError, match='the line has no "units"'):
        list(unit_files.read(write('t.jsonl', {'prediction': 'a text'}), 10))
