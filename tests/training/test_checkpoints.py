"""Damaged checkpoints and directories that are not ours: what is said, and that nothing is lost."""

import os
import pathlib
import shutil

import pytest
import toy

from slm_jax import foundations
from slm_jax.inference import model
from slm_jax.training import checkpoints, origins
from slm_jax.training.logs import read_losses


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A model directory with checkpoints of steps 5 and 10."""
    folder = tmp_path_factory.mktemp('trained')
    toy.save_frozen(folder / 'frozen')
    toy.train(folder / 'model', 10)
    return folder / 'model'


@pytest.fixture
def model_dir(trained, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(trained.parent, tmp_path / 'copy')
    return tmp_path / 'copy/model'


def gone(file):
    file.unlink()


def halved(file):
    os.truncate(file, file.stat().st_size // 2)


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def some_file(checkpoint, item):
    """The largest of an item: of arrays it holds data, where Orbax and Zstandard see few flipped bits."""
    return max(
        (file for file in (checkpoint / item).rglob('*') if file.is_file()), key=lambda file: file.stat().st_size
    )


@pytest.mark.parametrize('item', ['trainable', 'optimizer', 'card'])
@pytest.mark.parametrize('damage', [gone, halved, flipped])
def test_a_damaged_file_is_named(model_dir, item, damage):
    checkpoint = checkpoints.newest(model_dir)
    assert checkpoint.name == '10' and checkpoints.damage(checkpoint) is None
    file = some_file(checkpoint, item)
    damage(file)
    assert checkpoints.damage(checkpoint).startswith(str(file))


def test_training_goes_on_from_the_newest_whole_checkpoint(model_dir, capsys):
    file = some_file(model_dir / 'checkpoints/10', 'optimizer')
    flipped(file)
    damaged = file.read_bytes()
    toy.train(model_dir, 12)
    said = capsys.readouterr().out
    assert f'WARNING: {file} is damaged: its content is not what was written.' in said
    assert 'set aside as 10.damaged; training goes on from step 5, which is whole.' in said
    assert (
        model_dir / 'checkpoints/10.damaged' / file.relative_to(model_dir / 'checkpoints/10')
    ).read_bytes() == damaged
    assert checkpoints.newest(model_dir).name == '12'
    assert all(len(set(losses)) == 1 for losses in read_losses(model_dir).values())


def test_where_none_is_whole_nothing_is_touched(model_dir):
    for step in ('5', '10'):
        gone(some_file(model_dir / 'checkpoints' / step, 'trainable'))
    with pytest.raises(checkpoints.CheckpointError, match='is missing. No checkpoint of .* is whole'):
        toy.train(model_dir, 12)
    assert sorted(path.name for path in (model_dir / 'checkpoints').iterdir()) == ['10', '5']


def test_a_damaged_list_of_files_is_damage(model_dir):
    halved(model_dir / 'checkpoints/10/files.json')
    assert checkpoints.damage(model_dir / 'checkpoints/10').endswith('files.json is damaged')


def test_what_answers_names_the_file_and_the_step_to_use(model_dir):
    file = some_file(model_dir / 'checkpoints/10', 'trainable')
    flipped(file)
    words = f'{file} is damaged: .*Step 5 is whole: give --step 5'
    with pytest.raises(checkpoints.CheckpointError, match=words):
        checkpoints.load_for_inference(model_dir)
    with pytest.raises(checkpoints.CheckpointError, match=words):
        origins.find({'adapter': str(model_dir)})
    with pytest.raises(checkpoints.CheckpointError, match=words):
        model.load(model_dir)
    assert checkpoints.load_for_inference(model_dir, 5)[1]['step'] == 5
    with pytest.raises(checkpoints.CheckpointError, match='7 is not there'):
        checkpoints.load_for_inference(model_dir, 7)


def test_a_damaged_optimizer_does_not_keep_a_model_from_answering(model_dir):
    gone(some_file(model_dir / 'checkpoints/10', 'optimizer'))
    assert checkpoints.load_for_inference(model_dir)[1]['step'] == 10


def everything_in(directory):
    return {path: path.read_bytes() for path in pathlib.Path(directory).rglob('*') if path.is_file()}


def test_a_foundation_is_not_trained_into(model_dir):
    frozen = model_dir.parent / 'frozen'
    before = everything_in(frozen)
    with pytest.raises(checkpoints.CheckpointError, match="which holds the foundation 'frozen'"):
        toy.train(frozen, 5, foundations={'speech_encoder': str(frozen)})
    assert everything_in(frozen) == before


def test_another_directory_is_not_trained_into(model_dir):
    (model_dir / 'notes.txt').write_text('of another experiment')
    toy.train(model_dir, 11)  # It is a training's, whatever else is there.
    with pytest.raises(checkpoints.CheckpointError, match='holds no training: copy'):
        toy.train(model_dir.parents[1], 5, foundations={'speech_encoder': str(model_dir.parent / 'frozen')})
    with pytest.raises(checkpoints.CheckpointError, match='which is a file'):
        toy.train(model_dir / 'notes.txt', 5, foundations={'speech_encoder': str(model_dir.parent / 'frozen')})
    assert sorted(path.name for path in model_dir.parents[1].iterdir()) == ['copy']


def test_an_installed_model_is_not_trained_into(model_dir):
    installed = foundations.find('slm_tiny')
    before = everything_in(installed)
    with pytest.raises(checkpoints.CheckpointError, match='which is installed with the package'):
        toy.train(installed, 5, foundations={'speech_encoder': str(model_dir.parent / 'frozen')})
    assert everything_in(installed) == before


def test_nothing_left_to_do_is_said(model_dir, capsys):
    before = everything_in(model_dir)
    for steps in (10, 7):
        result = toy.train(model_dir, steps)
        assert result['step'] == 10 and not result['terminated'] and 'dev/loss' in result['evaluation']
        assert f'is at step 10 and {steps} are asked for: nothing left to do.' in capsys.readouterr().out
    assert everything_in(model_dir) == before
