"""What a training says, as JSON lines."""

import json
import math
import re
import warnings
from unittest import mock

import pytest
import toy

from slm_jax import terminal, train
from slm_jax.data import notices
from slm_jax.training import loop


@pytest.fixture
def model_dir(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    yield tmp_path / 'model'
    terminal.use('text', 0)


def lines(capsys):
    """What was said, parsed; every line has to be an object."""
    told = capsys.readouterr()
    assert not told.err
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in told.out.splitlines()]


def test_every_line_is_an_object_with_time_host_and_step(model_dir, capsys):
    with warnings.catch_warnings():
        toy.train(model_dir, 10, log_format='json')
    told = lines(capsys)
    assert all(re.fullmatch(r'\d{4}-\d\d-\d\dT[\d:.]+\+00:00', line['time']) and line['host'] == 0 for line in told)
    assert told[0]['step'] is None and '1 host(s)' in told[0]['message']
    losses = {line['step']: line['train/loss'] for line in told if 'train/loss' in line}
    assert list(losses) == [1, 2, 3, 5, 6, 10] and all(map(math.isfinite, losses.values()))
    (evaluation,) = (line for line in told if 'dev/loss' in line)
    assert evaluation['step'] == 10
    (samples,) = (line for line in told if 'dev/samples' in line)
    assert samples['dev/samples'].count('\n') > 2


def test_errors_and_notices_are_lines_too(model_dir, capsys, monkeypatch):
    with pytest.raises(loop.NonFiniteError) as caught, warnings.catch_warnings():
        toy.train(model_dir, 20, system=toy.ToySystem(nan_at=4), log_format='json')
    told = lines(capsys)
    assert told[-1]['train/loss'] == 'nan'
    monkeypatch.setattr(train.configuration, 'parse_gin', mock.Mock(side_effect=caught.value))
    with warnings.catch_warnings():
        terminal.use('json', 3)
        notices.say('bad examples')
        warnings.warn('odd', stacklevel=1)
        assert train.main([]) == 1
    notice, warning, error = lines(capsys)
    assert notice['message'] == 'bad examples' and notice['host'] == 3 and notice['step'] is None
    assert warning['message'] == 'warning: odd'
    assert error['message'].startswith('slm-jax train: step 3: the loss is nan')


def test_another_format_is_refused(model_dir):
    with pytest.raises(ValueError, match="train.log_format is 'yaml'; it must be one of text, json."):
        toy.train(model_dir, 5, log_format='yaml')
