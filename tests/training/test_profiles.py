"""Profiles of some steps, captured by a training and read again."""

import re

import pytest
import toy

from slm_jax import cli


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    """A training of eight steps of which 3 to 5 were profiled."""
    directory = tmp_path_factory.mktemp('profiled')
    toy.save_frozen(directory / 'frozen')
    toy.train(directory / 'model', 8, profile=(3, 6))
    return directory / 'model'


def test_the_steps_that_were_asked_for_are_profiled(model_dir):
    from jax.profiler import ProfileData

    folder = model_dir / 'profile/plugins/profile/steps_3_6'
    assert sorted(file.name for file in folder.iterdir()) == ['host0.trace.json.gz', 'host0.xplane.pb']
    events = [
        dict(event.stats)
        for plane in ProfileData.from_file(str(folder / 'host0.xplane.pb')).planes
        for line in plane.lines
        for event in line.events
        if event.name == 'train'
    ]
    assert [event['step_num'] for event in events if 'step_num' in event] == [3, 4, 5]


def test_a_profile_is_read(model_dir, capsys):
    assert cli.main(['profile', str(model_dir)]) == 0
    told = capsys.readouterr().out
    assert 'steps_3_6/host0.xplane.pb' in told
    rows = re.findall(r'^ +([\d.]+) +([\d.]+)% +(\d+)  \S+', told, re.M)
    shares = [float(share) for _, share, _ in rows]
    # Steps 3 to 5, and nothing of the evaluation: what a step does once is there three times.
    assert rows and {int(calls) % 3 for _, _, calls in rows} == {0}
    assert shares == sorted(shares, reverse=True) and sum(shares) < 100.6


def test_what_is_no_profile_is_said(tmp_path, capsys):
    assert cli.main(['profile', str(tmp_path)]) == 2
    assert f'slm-jax profile: {tmp_path} has no profile/: train it with --gin.PROFILE_STEPS=' in capsys.readouterr().err
    for steps in ((5, 5), (-1, 2), (1,)):
        with pytest.raises(ValueError, match=re.escape(f'train.profile is {steps}; it must be the first step')):
            toy.train(tmp_path / 'model', 5, profile=steps)
