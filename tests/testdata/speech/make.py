"""Makes the clips beside it: the beginnings of sentences of Common Voice 6.1 (CC0-1.0), as Opus.

python make.py FOLDER      # of a manifest.jsonl with the sentences named below
"""

import pathlib
import sys

import numpy as np
import soundfile

from slm_jax.audio import waveforms

NUMBERS = {'en': (221948, 685023), 'es': (18356405, 19982871), 'fr': (20468564,), 'it': (17454705,)}
SECONDS = 1.9


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    for lang, numbers in NUMBERS.items():
        for number in numbers:
            samples = waveforms.read_waveform(folder / lang / f'common_voice_{lang}_{number}.mp3')
            loud = np.flatnonzero(np.abs(samples) > 0.06 * np.abs(samples).max())[0]
            begin = max(0, loud - 1600)
            clip = samples[begin : begin + round(SECONDS * 16_000)]
            path = pathlib.Path(__file__).with_name(f'{lang}_{number}.ogg')
            soundfile.write(path, clip, 16_000, 'OPUS', compression_level=0.9)


if __name__ == '__main__':
    main()
