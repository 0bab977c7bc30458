"""The input pipeline alone: hours of audio per second and core, from the store to batches.

    python tests/benchmarks/bench_input_pipeline.py
    python tests/benchmarks/bench_input_pipeline.py --task voice_prompts --batches 300

Without --task it makes its own corpus of noise. Preparing (reading files, resampling) is timed
apart from serving: the first happens once.
"""

import argparse
import json
import pathlib
import tempfile
import time


def corpus(folder: pathlib.Path, clips: int) -> pathlib.Path:
    """A manifest of `clips` recordings of 2 to 20 s, 44.1 kHz FLAC."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    lines = []
    for number in range(clips):
        seconds = float(np.clip(rng.lognormal(2.1, 0.5), 2, 20))
        noise = (0.1 * rng.standard_normal(int(44100 * seconds))).astype(np.float32)
        soundfile.write(folder / f'{number}.flac', noise, 44100)
        lines.append(
            json.dumps(
                {
                    'audio': f'{number}.flac',
                    'lang': 'en',
                    'text': 'the quick brown fox ' * int(seconds / 2),
                }
            )
        )
    path = folder / 'manifest.jsonl'
    path.write_text('\n'.join(lines) + '\n')
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', help='a task or mixture (default: a corpus of noise)')
    parser.add_argument('--batches', type=int, default=200)
    parser.add_argument('--seconds_per_batch', type=float, default=120.0)
    parser.add_argument('--clips', type=int, default=300)
    args = parser.parse_args()

    from slm_jax import tasks
    from slm_jax.data import loader as loader_lib

    with tempfile.TemporaryDirectory() as folder:
        name, cache_dir = args.task, None
        if name is None:
            name, cache_dir = 'bench', f'{folder}/cache'
            tasks.manifest(name, corpus(pathlib.Path(folder), args.clips))
        wall, cpu = time.perf_counter(), time.process_time()
        loader = loader_lib.SpeechTextLoader(
            name, 'train', seconds_per_batch=args.seconds_per_batch, cache_dir=cache_dir
        )
        hours = sum(task.samples.sum() for task in loader.planned) / 16000 / 3600
        print(
            f'prepared {hours:.2f} h in {time.perf_counter() - wall:.1f} s '
            f'({time.process_time() - cpu:.1f} CPU s); {len(loader.plan.buckets)} shapes, '
            f'{loader.speech_fill:.1%} of the samples sent are speech'
        )
        batches = loader.batches()
        next(batches)
        wall, cpu, seconds, rows = time.perf_counter(), time.process_time(), 0.0, 0
        for _ in range(args.batches):
            _, batch = next(batches)
            seconds += batch['speech_lengths'].sum() / 16000
            rows += len(batch['speech_lengths'])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        batches.close()
        print(
            f'served {args.batches} batches, {rows} examples, {seconds / 3600:.2f} h '
            f'in {wall:.2f} s '
            f'({cpu:.2f} CPU s): {seconds / 3600 / cpu:.1f} h of audio per second and core'
        )


if __name__ == '__main__':
    main()
