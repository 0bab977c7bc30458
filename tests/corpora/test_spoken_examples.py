"""The first recordings that one asks about."""

import sys

import numpy as np
import pytest
import soundfile

from slm_jax.corpora import spoken_examples
from slm_jax.data import manifests


def test_they_are_a_manifest_for_infer(tmp_path, monkeypatch):
    pytest.importorskip('py_nanotts', reason="the voice: pip install 'slm_jax[quickstart]'")
    spoken_examples.main([str(tmp_path / 'out')])
    lines = list(manifests.read(tmp_path / 'out/examples.jsonl'))
    assert len(lines) == 4 and all(line['instruction'] and not line['error'] for line in lines)
    for line in lines:
        samples, rate = soundfile.read(line['audio'])
        assert 1 < len(samples) / rate < 8 and np.abs(samples).max() > 0.1


def test_the_voice_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'py_nanotts', None)
    with pytest.raises(SystemExit, match='2'):
        spoken_examples.main([str(tmp_path / 'out')])
    assert "pip install 'slm_jax[quickstart]'" in capsys.readouterr().err
