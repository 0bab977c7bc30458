"""slm_base on this machine's CPU, in one run: training and generation against PyTorch, imports, the start of `infer`.

    pip install -e '.[hf]'
    export SLM_JAX_FOUNDATIONS=…      # a folder with whisper_base/ (Hugging Face) and qwen_0.5b/*.gguf
    slm-jax import whisper_base && slm-jax import qwen2.5_coder_0.5b
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tests/benchmarks/bench_slm_base.py MANIFEST.jsonl

The rival is `transformers` (see torch_slm_base.py) with the same values, all in float32. That both compute the same is
checked first: the loss to 1e-3, and the tokens. Then they take turns. Clips are the manifest's first that need the same
window of Whisper, so that the rival may compute them together. `--parts` chooses among the table's rows.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import slm_step

from slm_jax import decoding
from slm_jax.audio import waveforms
from slm_jax.data import feature_converter
from slm_jax.inference import controls
from slm_jax.inference import model as model_lib
from slm_jax.systems.text_to_text import generate
from slm_jax.training import state as state_lib

_PARTS = ('steps', 'generation', 'ctc', 'imports', 'start')
_INSTRUCTION = 'Repeat what is said.'
_QUESTIONS = (
    'Tell me a long story about a lighthouse.', 'Explain how a bicycle stays upright.', 'Describe the city of Paris.',
    'How is bread made? Explain each step.', 'Write an essay about the history of coffee.',
    'Explain what a computer does.', 'Describe the life of a bee in spring.', 'Why is the sky blue? Explain at length.',
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('manifest', help='JSON lines with audio and text')
    parser.add_argument('--model', default='slm_base', help='a trained one of this kind')
    parser.add_argument('--parts', default=','.join(_PARTS))
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument(
        '--window', type=float, default=5.0, help='seconds: the clips are those that Whisper needs it for'
    )
    parser.add_argument('--length', type=int, default=32, help='tokens to generate')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    parts = args.parts.split(',')
    if wrong := set(parts) - set(_PARTS):
        raise SystemExit(f'--parts: there is no {wrong}; there are {_PARTS}')
    rows, notes = [], []
    if {'steps', 'generation', 'ctc'} & set(parts):
        computed(args, parts, rows, notes)
    if 'imports' in parts:
        imports(rows)
    if 'start' in parts:
        rows.append(start(args))
    print(*notes, '', sep='\n')
    print('| | slm_jax, s | PyTorch, s | ratio (best of each) | aim |\n| --- | --- | --- | --- | --- |')
    for name, ours, theirs, aim in rows:
        ratios = [f'{of(theirs) / of(ours):.2f}' for of in (statistics.median, min)] if theirs else ['', '']
        shown = [f'{statistics.median(each):.3g}' if each else '' for each in (ours, theirs)]
        print(f'| {name} | {shown[0]} | {shown[1]} | {ratios[0]}{f" ({ratios[1]})" if theirs else ""} | {aim} |')


def computed(args: argparse.Namespace, parts: Sequence[str], rows: list, notes: list) -> None:
    """What runs in this process."""
    model = model_lib.load(args.model, bindings=['SLM.objective="cross_entropy"'])
    batch = batch_of(args, model)
    encoded = with_frames(model, batch)
    seconds = batch['speech_lengths'] / 16_000
    prompt, target = (batch[f'{name}_tokens'].shape[1] for name in ('encoder_input', 'decoder_target'))
    notes += [
        f'{args.rows} clips of {seconds.min():.1f} to {seconds.max():.1f} s; {prompt} tokens in the prompts besides, '
        f'{target} in the answers; medians of {args.rounds} rounds, in turns',
        f'jax {jax.__version__}, {len(os.sched_getaffinity(0))} CPUs',
    ]
    if 'ctc' in parts:
        rows += ctc(args, model, encoded, notes)
    if not {'steps', 'generation'} & set(parts):
        return
    import torch
    import torch_slm_base
    import transformers

    notes.append(
        f'torch {torch.__version__}, {torch.get_num_threads()} threads; transformers {transformers.__version__}'
    )
    folder = pathlib.Path(os.environ['SLM_JAX_FOUNDATIONS'])
    llm = torch_slm_base.qwen(model.system.llm.config, jax.tree.map(np.asarray, model.params['llm']))
    if 'steps' in parts:
        whisper = torch_slm_base.whisper(folder / 'whisper_base')
        rival = torch_slm_base.TorchSlm(model.system, model.params, whisper, llm)
        rows += steps(args, model, batch, encoded, rival, notes)
    if 'generation' in parts:
        rows += generation(args, model, llm, notes)


def batch_of(args: argparse.Namespace, model: Any) -> dict[str, np.ndarray]:
    """The clips that take the window, with a request and their text."""
    window, prompt = model.system.speech_encoder.encoder.config.window, model.prompt
    inputs = prompt.tokens(model.vocabulary, _INSTRUCTION)
    examples: list[dict[str, Any]] = []
    for line in controls.read_lines(args.manifest):
        samples = waveforms.read_waveform(pathlib.Path(args.manifest).parent / line['audio'])
        if window(-(-len(samples) // 320)) == args.window * 50 and len(examples) < args.rows:
            examples.append(
                {'speech': samples, 'inputs': inputs, 'targets': [*model.vocabulary.encode(line['text']), 1]}
            )
    if len(examples) < args.rows:
        raise SystemExit(f'{args.manifest} has {len(examples)} clips for a window of {args.window} s: give another')
    lengths = {name: max(len(each[name]) for each in examples) for name in examples[0]}
    made = [feature_converter.model_features(each, lengths) for each in examples]
    return {name: np.stack([each[name] for each in made]) for name in made[0]}


def with_frames(model: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with stored frames in the place of its samples."""
    speech, params = model.system.speech_encoder, {'params': model.params['speech_encoder']}
    frames, lengths, _ = jax.jit(speech.apply)(params, batch['speech_samples'], batch['speech_lengths'])
    return batch | {
        'speech_samples': batch['speech_samples'][:, :0],
        'speech_frames': np.asarray(frames.astype(jnp.bfloat16)),
        'speech_frame_lengths': np.asarray(lengths),
    }


def step_of(system: Any, params: Any, batch: dict[str, np.ndarray]) -> Callable[[], None]:
    """A training step of the adapter, to be called again and again."""
    step, state, frozen, _ = slm_step.training(system, params, ('adapter/.*',))
    step = jax.jit(step, donate_argnums=0)

    def train() -> None:
        nonlocal state
        state, scalars = step(state, frozen, batch)
        jax.block_until_ready(scalars)

    return train


def ctc(args: argparse.Namespace, model: Any, batch: dict[str, np.ndarray], notes: list) -> list:
    """The step without the language model, which has no rival."""
    system = dataclasses.replace(model.system, objective='ctc')
    step = step_of(system, state_lib.read(system, model.params), batch)
    step()
    started, seconds = time.process_time(), []
    for _ in range(args.rounds):
        seconds += timed(step)
    used = (time.process_time() - started) / args.rounds / args.rows
    notes.append(f'CTC step: {used:.3f} CPU-seconds a clip')
    return [('training step by CTC, from stored frames', seconds, None, '')]


def steps(args: argparse.Namespace, model: Any, batch: Any, encoded: Any, rival: Any, notes: list) -> list:
    """The training step through the language model, from frames and from waveforms."""
    import torch
    import transformers
    from torch import nn

    extractor = transformers.WhisperFeatureExtractor()
    clips = [samples[:n] / np.float32(32768) for samples, n in zip(batch['speech_samples'], batch['speech_lengths'])]
    lengths = torch.from_numpy(encoded['speech_frame_lengths'].astype(np.int64))
    frames = torch.from_numpy(encoded['speech_frames'].astype(np.float32))

    def heard() -> torch.Tensor:
        size = round(16_000 * args.window)
        made = extractor(clips, sampling_rate=16_000, return_tensors='pt', padding='max_length', max_length=size)
        return rival.hear(made['input_features'])[:, : frames.shape[1]]

    optimizer = torch.optim.AdamW(rival.adapter.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.0)

    def train(start: Callable[[], torch.Tensor]) -> None:
        optimizer.zero_grad()
        rival.loss(start(), lengths, batch).backward()
        nn.utils.clip_grad_norm_(rival.adapter.parameters(), 1.0)
        optimizer.step()

    rows, begun = [], {name: value.clone() for name, value in rival.adapter.state_dict().items()}
    for name, ours, theirs in (('stored frames', encoded, lambda: frames), ('waveforms', batch, heard)):
        rival.adapter.load_state_dict(begun)
        our_loss = float(jax.jit(lambda params, fed: model.system.loss(params, fed, None)[0])(model.params, ours))
        with torch.no_grad():
            their_loss = float(rival.loss(theirs(), lengths, batch))
        notes.append(f'loss from {name}: slm_jax {our_loss:.5f}, PyTorch {their_loss:.5f}')
        if abs(our_loss - their_loss) > 1e-3 * our_loss:
            raise SystemExit(f'{notes[-1]}: they do not compute the same, so there is no comparison')
        taken = in_turns(args.rounds, step_of(model.system, model.params, ours), functools.partial(train, theirs))
        rows.append((f'training step through the LLM, from {name}', *taken, '1.5'))
    return rows


def generation(args: argparse.Namespace, model: Any, llm: Any, notes: list) -> list:
    """Greedy answers to texts, one at a time and eight."""
    import torch
    import torch_slm_base

    decode = decoding.DecodeConfig(max_decode_length=args.length)
    params = model.params['llm']
    write = jax.jit(lambda params, prompt, mask: generate(model.system.llm, params, prompt, mask, decode))
    asked = [model.prompt.tokens(model.vocabulary, question, '') for question in _QUESTIONS]
    rows = []
    for count in (1, 8):
        tokens = np.zeros((count, max(map(len, asked[:count]))), np.int32)
        for row, each in zip(tokens, asked):
            row[: len(each)] = each
        embed = jax.jit(functools.partial(model.system.llm.apply, method='embed'))
        prompt, mask = np.asarray(embed({'params': params}, tokens)), tokens > 0
        prompts = [torch.from_numpy(row[valid]) for row, valid in zip(prompt, mask)]
        ours = lambda: np.asarray(write(params, prompt, mask))
        theirs = lambda: torch_slm_base.generate(llm, prompts, args.length)
        written, expected = ours(), theirs().numpy()
        same = (written[:, : expected.shape[1]] == expected).all(axis=1)
        notes.append(
            f'greedy, batch of {count}: {same.sum()} of {count} rows have the same tokens; {expected.shape[1]} steps'
        )
        rows.append((f'greedy, {args.length} tokens, batch of {count}', *in_turns(args.rounds, ours, theirs), '2'))
    return rows


def in_turns(rounds: int, *functions: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each function's calls, one after another, after one to warm up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, taken in zip(functions, seconds):
            taken += timed(function)
    return seconds


def timed(function: Callable[[], Any]) -> list[float]:
    started = time.perf_counter()
    function()
    return [time.perf_counter() - started]


def imports(rows: list) -> None:
    """What brings local files in, beside their loading by `transformers`; whole processes."""
    folder = pathlib.Path(os.environ['SLM_JAX_FOUNDATIONS'])
    gguf = next(folder.glob('qwen_0.5b/*.gguf'))
    rival = 'import torch, transformers as t; t.{}.from_pretrained({!r}, dtype=torch.float32{})'
    for name, source, theirs in (
        ('whisper_base', folder / 'whisper_base', rival.format('WhisperModel', str(folder / 'whisper_base'), '')),
        ('qwen2.5_coder_0.5b', gguf,
         rival.format('AutoModelForCausalLM', str(gguf.parent), f', gguf_file={gguf.name!r}')),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            ours = [sys.executable, '-m', 'slm_jax.import_', str(source), f'{out}/{name}']
            taken = [timed(functools.partial(run, command)) for command in (ours, [sys.executable, '-c', theirs])]
        rows.append((f'import of {name}, once (PyTorch: loading)', *taken, ''))


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def start(args: argparse.Namespace) -> tuple:
    """From the command to the first character of the answer, once all is compiled."""
    line = controls.read_lines(args.manifest)[0]
    file = pathlib.Path(args.manifest).parent / line['audio']
    command = [sys.executable, '-m', 'slm_jax.infer', str(file), '--model', args.model, '--instruction', _INSTRUCTION]

    def answer() -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.stdout.read(1)
            process.terminate()

    run(command)
    return 'slm-jax infer, to the first word', [each for _ in range(args.rounds) for each in timed(answer)], None, '4'


if __name__ == '__main__':
    main()
