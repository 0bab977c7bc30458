"""The program: a codebook from recordings, units of them, and both kinds of models that make units heard and seen."""

import json

import numpy as np
import pytest
import soundfile

from slm_jax import codebook, foundations, train
from slm_jax.codebooks import unit_files
from slm_jax.codebooks.codebook import Codebook
from slm_jax.codebooks.images import ImageCodebook
from slm_jax.codebooks.vocoder import Vocoder
from slm_jax.corpora import pictures
from slm_jax.data import json_lines

pytest.importorskip('sklearn')
TRAINING = [
    f'--gin.{each}' for each in ('TRAIN_STEPS=2', 'WARMUP_STEPS=1', 'train.eval_batches=1', 'train.tensorboard=False')
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Some recordings, one of which is torn, and a codebook of usm_tiny's first layer."""
    path = tmp_path_factory.mktemp('codebooks')
    rng, rows = np.random.default_rng(0), []
    for number, seconds in enumerate((0.9, 0.5, 0.7)):
        samples = np.cumsum(rng.normal(size=int(16_000 * seconds))) % 2 - 1
        soundfile.write(path / f'{number}.wav', 0.3 * samples, 16_000, subtype='PCM_16')
        rows.append({'id': str(number), 'audio': f'{number}.wav', 'text': 'hello', 'mood': 'calm'})
    json_lines.write(path / 'm.jsonl', rows)
    (path / 'torn.wav').write_bytes((path / '0.wav').read_bytes()[:60])
    json_lines.write(path / 'bad.jsonl', [rows[0], {'id': 'torn', 'audio': 'torn.wav', 'text': 'x'}])
    fit = ['fit', str(path / 'usm'), '--encoder', 'usm_tiny', '--manifest', str(path / 'm.jsonl')]
    assert codebook.main([*fit, '--gin.K=6', '--gin.LAYER=1']) == 0
    return path


def encode(folder, own, out, manifest='m.jsonl', *more):
    return codebook.main(['encode', str(own), str(folder / out), '--manifest', str(folder / manifest), *more])


@pytest.fixture(scope='module')
def units(folder):
    assert encode(folder, folder / 'usm', 'u.jsonl') == 0
    return folder / 'u.jsonl'


def test_a_codebook_says_what_it_is_of(folder):
    own, usm = Codebook.load(folder / 'usm'), foundations.card('usm_tiny')
    assert own.size == 6 and own.frames_per_second == 25 and own.centroids.shape == (6, 160)
    assert own.card['encoder']['fingerprint'] == usm['fingerprint']['content'] and own.card['layer'] == 1
    assert own.card['fitted']['frames'] == 22 + 12 + 17 and not (folder / 'usm.frames').exists()


def test_units_stand_on_the_lines_of_the_manifest(folder, units):
    label = Codebook.load(folder / 'usm').label
    found = list(unit_files.read(units, 6, label=label))
    assert [each.row['mood'] for each in found] == ['calm'] * 3 and [each.id for each in found] == ['0', '1', '2']
    assert [int(each.durations.sum()) for each in found] == [22, 12, 17]
    assert all((np.diff(each.units) != 0).all() for each in found)
    assert not (folder / 'u.jsonl.parts').exists()


def test_processes_and_a_run_that_was_cut_give_the_same(folder, units, monkeypatch):
    from slm_jax.codebooks import units as units_lib

    monkeypatch.setattr(units_lib, 'SHARD', 1)
    real, heard = units_lib.UnitShards.__call__, []

    def counted(self, number):
        if len(heard) == 2:
            raise ValueError('cut')
        heard.append(number)
        return real(self, number)

    monkeypatch.setattr(units_lib.UnitShards, '__call__', counted)
    assert encode(folder, folder / 'usm', 'again.jsonl') == 2 and not (folder / 'again.jsonl').exists()
    heard[:] = [0]
    assert encode(folder, folder / 'usm', 'again.jsonl') == 0 and heard == [0, 2]
    assert (folder / 'again.jsonl').read_bytes() == units.read_bytes()


def test_bad_recordings_stop_it_or_are_left_out(folder, capsys):
    assert encode(folder, folder / 'usm', 'b.jsonl', 'bad.jsonl') == 2
    said = capsys.readouterr().err
    assert 'torn.wav' in said and '--on_bad_example skip' in said and not (folder / 'b.jsonl').exists()
    (folder / 'b.jsonl.parts').rename(folder / 'c.jsonl.parts')
    assert encode(folder, folder / 'usm', 'c.jsonl', 'bad.jsonl', '--on_bad_example', 'skip') == 0
    assert [row['id'] for row in json_lines.read(folder / 'c.jsonl')] == ['0']
    assert 'torn.wav' in capsys.readouterr().out


def test_units_of_two_languages_are_joined(tmp_path, capsys):
    json_lines.write(tmp_path / 'en.jsonl', [{'id': 'a', 'units': [1]}, {'id': 'b', 'units': [2]}])
    json_lines.write(tmp_path / 'de.jsonl', [{'id': 'a', 'units': [3], 'lang': 'de'}])
    files = [str(tmp_path / name) for name in ('en.jsonl', 'de.jsonl', 'both.jsonl')]
    assert codebook.main(['pair', *files]) == 0
    said = capsys.readouterr().out
    assert f'{files[2]}: 1 pairs' in said and f'1 of {files[0]} have none in {files[1]} and are left out, the' in said
    assert json_lines.read(files[2]) == [{'id': 'a', 'units': [1], 'target_units': [3], 'target_lang': 'de'}]
    assert codebook.main(['pair', files[0], str(tmp_path / 'none.jsonl'), files[2]]) == 2


def test_a_codebook_of_another_encoder_is_refused(folder, tmp_path, capsys):
    other = tmp_path / 'usm_other'
    weights = foundations.load('usm_tiny', dtype='float32')
    foundations.save(other, weights, {'name': 'usm_other', 'kind': 'speech_encoder'})
    assert encode(folder, folder / 'usm', 'd.jsonl', 'm.jsonl', '--encoder', str(other)) == 2
    said = capsys.readouterr().err
    assert 'is a codebook of usm_tiny (layer 1' in said and 'usm_other (layer 1' in said


def test_arguments_that_cannot_be_are_refused(folder, tmp_path, capsys):
    fit = ['fit', str(tmp_path / 'x'), '--encoder', 'usm_tiny', '--manifest', str(folder / 'm.jsonl')]
    for arguments, said in (
        ([*fit, '--gin.LAYER=7'], 'layer is 7; the encoder has layers 1 to 6'),
        ([*fit, '--gin.K=1'], 'KMeans.k (set by K) is 1; a whole number from 2 on'),
        ([*fit[:4], '--gin.K=3'], 'give --manifest FILE or --task NAME'),
        ([*fit[:1], str(folder), *fit[2:]], 'is there. Give another OUT'),
        ([*fit, '--processes', '0'], '--processes 0: a whole number'),
        (['encode', 'usm_tiny', str(tmp_path / 'u'), '--manifest', 'm'], 'usm_tiny is no codebook'),
        (['decode', 'usm_tiny', str(tmp_path / 'u'), str(tmp_path / 'o')], 'of UnitVocoder or ImageVq was expected'),
        (['read', 'u.txt', 'o.jsonl', '--manifest', 'm', '--size', '0'], '--size 0: a whole number from 1 on'),
        (['decode', 'usm_tiny', 'u', str(tmp_path)], 'is there. Give another OUT'),
    ):
        assert codebook.main(arguments) == 2
        assert said in capsys.readouterr().err, arguments


@pytest.mark.slow
def test_a_vocoder_is_trained_on_units_and_speaks_them(folder, units, tmp_path, capsys):
    sizes = ('emb_dim=8', 'mlp_dim=8', 'num_layers=1', 'frames_per_second=25')
    macros = {'UNITS': units, 'UNITS_VALIDATION': units, 'NUM_UNITS': 6, 'MODEL_DIR': tmp_path / 'v', 'BATCH_ROWS': 2}
    given = [f'--gin.{name}={value}' for name, value in {**macros, 'FRAMES_PER_SECOND': 25}.items()]
    given += [f'--gin.VocoderConfig.{size}' for size in sizes[:3]]
    assert train.main(['--gin_file=codebooks/vocoder.gin', *given, *TRAINING]) == 0
    own = Vocoder.load(tmp_path / 'v')
    own.check(Codebook.load(folder / 'usm').label)
    said = own.speak(np.array([1, 4, 2]), np.array([2, 1, 3]))
    assert said.dtype == np.int16 and said.shape == (6 * 640,) and np.abs(said).max() > 0
    assert len(own.speak(np.array([1, 4, 2]))) == 640 * own.durations(np.array([1, 4, 2])).sum()
    assert len(own.speak(np.array([], np.int32))) == 0
    with pytest.raises(ValueError, match='unit 6 is out of range: usm@.* has 6, 0 to 5'):
        own.speak(np.array([6]))
    with pytest.raises(ValueError, match=r'v says units of the codebook usm@.*, and these are of whisper@1'):
        own.check('whisper@1')
    assert codebook.main(['decode', str(tmp_path / 'v'), str(units), str(tmp_path / 'said')]) == 0
    rows = json_lines.read(tmp_path / 'said/manifest.jsonl')
    assert [(row['id'], row['duration'], row['text']) for row in rows][1] == ('1', 12 / 25, 'hello')
    assert soundfile.info(tmp_path / 'said' / rows[1]['audio']).frames == 12 * 640
    foreign = tmp_path / 'foreign.jsonl'
    foreign.write_text(json.dumps({'id': 'a', 'units': [1], 'durations': [1], 'codebook': 'whisper@1'}))
    capsys.readouterr()
    assert codebook.main(['decode', str(tmp_path / 'v'), str(foreign), str(tmp_path / 'none')]) == 2
    assert 'are of the codebook whisper@1, and those of usm@' in capsys.readouterr().err
    assert not (tmp_path / 'none').exists()


@pytest.mark.slow
def test_an_image_codebook_is_trained_and_gives_images_again(tmp_path, capsys):
    pictures.make(tmp_path / 'p', 40, 0)
    macros = {'IMAGES': tmp_path / 'p/train.jsonl', 'IMAGES_VALIDATION': tmp_path / 'p/test.jsonl'}
    given = [f'--gin.{name}={value}' for name, value in {**macros, 'MODEL_DIR': tmp_path / 'i'}.items()]
    given += ['--gin.ImageVqConfig.channels=(4, 4)', '--gin.ImageVqConfig.num_codes=16', '--gin.Images.rows=4']
    assert train.main(['--gin_file=codebooks/image.gin', *given, *TRAINING]) == 0
    own = ImageCodebook.load(tmp_path / 'i')
    assert (own.size, own.shape, own.pixels) == (16, (8, 8), 32)
    tokens = tmp_path / 'p/tokens.jsonl'
    assert encode(tmp_path / 'p', tmp_path / 'i', 'tokens.jsonl', 'test.jsonl') == 0
    assert '8 x 8 tokens' in capsys.readouterr().out
    rows = json_lines.read(tokens)
    assert rows[0]['codebook'] == own.label and rows[0]['caption'] and np.shape(rows[0]['tokens']) == (8, 8)
    assert codebook.main(['decode', str(tmp_path / 'i'), str(tokens), str(tmp_path / 'seen')]) == 0
    seen = json_lines.read(tmp_path / 'seen/manifest.jsonl')
    assert [row['caption'] for row in seen] == [row['caption'] for row in rows]
    rows[0]['tokens'] = rows[0]['tokens'][:4]
    json_lines.write(tokens, rows[:1])
    assert codebook.main(['decode', str(tmp_path / 'i'), str(tokens), str(tmp_path / 'none')]) == 2
    assert "4 x 8 tokens, and the model's images have 8 x 8" in capsys.readouterr().err
