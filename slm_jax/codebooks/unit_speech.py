"""Unit files to recordings, by a vocoder."""

import json
import pathlib
import time

import numpy as np

from slm_jax.codebooks import unit_files
from slm_jax.codebooks.vocoder import Vocoder
from slm_jax.corpora import clips
from slm_jax.data import manifests

_SILENCE = 1600  # samples
_GONE = (*manifests.AUDIO, 'offset', 'duration', 'durations', unit_files.UNITS)  # of a line: they are the old ones


def decode(vocoder: Vocoder, file: str, out: pathlib.Path, predict_durations: bool) -> str:
    """Writes a FLAC for each recording of a unit file to a folder, and manifest.jsonl; returns how much.

    Args:
        vocoder: that speaks.
        file: see `unit_files`. Without durations its units are taken to last as they are repeated; but a model's
            predictions have no repetitions, and last as the vocoder says.
        out: the folder.
        predict_durations: whether the vocoder says how long units last; repetitions are taken out before.

    Raises:
        UnitError: units that cannot be used.
    """
    lines, seconds, spent = [], 0.0, 0.0
    for found in unit_files.read(file, vocoder.model.config.num_units, label=vocoder.codebook):
        units, durations = found.units, found.durations
        predicted = predict_durations or (durations is None and unit_files.PREDICTION in found.row)
        if durations is None:
            units, durations = unit_files.without_repetitions(units)
        started = time.perf_counter()
        samples = vocoder.speak(units, None if predicted else durations)
        spent += time.perf_counter() - started
        if not len(samples):  # nothing is said, and a recording of no length is none
            samples = np.zeros(_SILENCE, np.int16)
        name = f'{len(lines):06d}.flac'
        told = clips.save(out / name, samples)
        seconds += told
        known = {key: value for key, value in found.row.items() if key not in _GONE}
        lines.append(json.dumps({'id': found.id or name, **known, 'audio': name, 'duration': told}) + '\n')
    (out / 'manifest.jsonl').write_text(''.join(lines), encoding='utf-8')
    return f'{len(lines)} recordings, {seconds:.1f} s in {spent:.1f} s (compilation included)'
