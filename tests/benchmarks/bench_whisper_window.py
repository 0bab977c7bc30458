"""How much the frames of a Whisper change when its windows are shorter than 30 s, on recordings.

    python tests/benchmarks/bench_whisper_window.py MANIFEST.jsonl --foundation whisper_base --clips 60

Of each window: the relative L2 distance of a clip's valid frames from those of `window_seconds = None`, and their mean
cosine; both are means over clips.
"""

import argparse
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slm_jax import configuration, foundations
from slm_jax.audio import waveforms
from slm_jax.inference import controls, queries
from slm_jax.systems.speech_encoder import SpeechEncoder

_WINDOWS = (None, 0.02, 1.0, 2.0, 5.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('manifest')
    parser.add_argument('--foundation', default='whisper_base')
    parser.add_argument('--clips', type=int, default=60, help='the first so many lines')
    parser.add_argument('--lang', help='of lines in this language')
    args = parser.parse_args()
    configuration.parse_gin([str(foundations.find(args.foundation) / foundations.MODEL_FILE)], [])
    model = configuration.configured(SpeechEncoder)()
    params = foundations.load(args.foundation, jnp.float32)

    def program(window):
        config = dataclasses.replace(model.encoder.config, window_seconds=window)
        windowed = model.clone(encoder=model.encoder.clone(config=config))
        return jax.jit(lambda samples, length: windowed.apply({'params': params}, samples, length)[:2])

    programs = {window: program(window) for window in _WINDOWS}
    lines = [line for line in controls.read_lines(args.manifest) if args.lang in (None, line.get('lang'))][: args.clips]
    found = {window: ([], []) for window in _WINDOWS[1:]}
    for line in tqdm(lines, unit='clip', disable=None):
        samples = waveforms.read_waveform(pathlib.Path(args.manifest).parent / line['audio'])
        padded = np.zeros((1, round(16_000 * queries.seconds_bound(len(samples) / 16_000))), np.int16)
        padded[0, : len(samples)] = samples
        frames = {}
        for window, encode in programs.items():
            array, length = encode(padded, np.array([len(samples)]))
            frames[window] = np.asarray(array)[0, : int(length[0])]
        whole = frames[None]
        for window, (distances, cosines) in found.items():
            norms = np.linalg.norm(frames[window], axis=1) * np.linalg.norm(whole, axis=1)
            distances.append(np.linalg.norm(frames[window] - whole) / np.linalg.norm(whole))
            cosines.append(np.mean(np.sum(frames[window] * whole, axis=1) / norms))
    for window, (distances, cosines) in found.items():
        print(
            f'window_seconds = {window:g}, {len(lines)} clips: relative L2 {np.mean(distances):.3f}, '
            f'cosine {np.mean(cosines):.3f}'
        )


if __name__ == '__main__':
    main()
