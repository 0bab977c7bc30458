"""What a vocoder says of unit files, and of what a model wrote, with what was to be said beside it."""

import json
import types

import numpy as np
import soundfile

from slm_jax.codebooks import unit_speech
from slm_jax.data import json_lines

SAID = []
VOCODER = types.SimpleNamespace(
    model=types.SimpleNamespace(config=types.SimpleNamespace(num_units=12)),
    codebook='k12@abc',
    speak=lambda units, durations: SAID.append(durations) or np.repeat(units.astype(np.int16), 400),
)


def test_predictions_are_said_as_long_as_the_vocoder_likes(tmp_path):
    wanted = {'lang': 'en', 'instruction': 'Hold on.', 'reference': '3'}
    lines = [{'id': 'a', 'prediction': '3 7', **wanted}, {'id': 'b', 'prediction': '', **wanted}]
    lines.append({'id': 'c', 'units': [3, 3, 7]})
    (tmp_path / 'predictions.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    SAID.clear()
    told = unit_speech.decode(VOCODER, str(tmp_path / 'predictions.jsonl'), tmp_path, False)
    assert told.startswith('3 recordings, ')
    assert SAID[:2] == [None, None] and SAID[2].tolist() == [2, 1]
    rows = json_lines.read(tmp_path / 'manifest.jsonl')
    assert [(row['id'], row.get('text'), row['duration']) for row in rows] == [
        ('a', 'Hold on.', 0.05), ('b', 'Hold on.', 0.1), ('c', None, 0.05)
    ]  # fmt: skip
    silence, _ = soundfile.read(tmp_path / rows[1]['audio'])
    assert len(silence) == 1600 and not silence.any()  # to be heard as nothing
