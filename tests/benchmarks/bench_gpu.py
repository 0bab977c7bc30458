"""A training step of SLM on one accelerator: its estimate, its time, and PyTorch's, on the same card in one run.

    pip install -e '.[cuda,hf]'
    python tests/benchmarks/bench_gpu.py
    slm-jax precompile --gin_file=models/slm_large.gin --topology=gpu:h100x1 --steps=train \
        --rows=16 --seconds=15 --inputs=12 --targets=128

USM-0.6B, T5-large and an adapter, with fresh weights; clips of noise. Frozen parts are bfloat16 in both, the adapter is
float32 and computes in bfloat16. The rival is that of bench_pytorch.py (`transformers` with SDPA where it has it, an
adapter in PyTorch, fused AdamW) under `torch.compile`. Ours starts from the waveform; the rival, whose frontend runs on
the CPU, is given its features. That both compute the same loss is checked.

The estimate is that of `precompile` with what this card's compiler says of temporaries.
"""

import argparse
import statistics
import time

import bench_pytorch
import jax
import jax.numpy as jnp
import numpy as np
import slm_step
import torch

from slm_jax import decoding, foundations
from slm_jax.inference import model as model_lib
from slm_jax.training import chips, flops, loop, optimizers, partitioning, setup
from slm_jax.training import state as state_lib

_LOSSES_APART = 0.02  # of the loss: both round to bfloat16, and not alike


def unscanned(params: dict, layers: int) -> dict:
    """A scanned T5's parameters (path -> array) by the names of the other layout, one position bias for all layers."""
    result = {}
    for path, value in params.items():
        stack, _, rest = path.partition('/')
        if not rest.startswith(f'{stack}/'):
            result[path] = value
            continue
        name = rest.removeprefix(f'{stack}/')
        if name.startswith('relpos_bias'):
            result[f'{stack}/{name}'] = value[:, 0]
            continue
        for layer in range(layers):
            one = value[:, layer]
            if name.endswith('out/kernel'):
                one = one.reshape(-1, one.shape[-1])
            elif 'attention/' in name:
                one = one.reshape(one.shape[0], -1)
            result[f'{stack}/layers_{layer}/{name}'] = one
    return result


class Ours:
    """The training of `train`, on the first device."""

    def __init__(self, system, batch):
        mesh = partitioning.Partitioner(data=1).mesh(jax.devices()[:1])
        layout = setup.lay_out(system, model_lib.query('%TRAINABLE'), partitioning.Partitioner(), mesh)
        optimizer = optimizers.adamw(1e-3)
        abstract = setup.abstract_state(layout, optimizer)
        params = jax.jit(lambda rng: state_lib.unboxed(layout.init(rng)))(jax.random.key(0))
        for side in ('encoder', 'decoder'):
            bias = params['llm'][side][side]['relpos_bias']
            bias['rel_embedding'] = jnp.broadcast_to(bias['rel_embedding'][:, :1], bias['rel_embedding'].shape)
        trainable, frozen = state_lib.split(params, model_lib.query('%TRAINABLE'))
        self.params = jax.tree.map(np.asarray, params)
        self.frozen = jax.tree.map(lambda leaf, held: leaf.astype(held.dtype), frozen, layout.held)
        self.state = state_lib.TrainState(
            step=jnp.int32(0), bad_step=jnp.int32(-1), trainable=trainable, opt_state=optimizer.init(trainable)
        )
        self.batch = jax.device_put(batch)
        self.rng = jax.random.key(0)
        steps = setup.steps(layout, optimizer, abstract, decoding.DecodeConfig(), lambda line: None)
        arguments = self.batch, self.state, self.frozen, self.rng
        self.flops = flops.count(steps.train.traced(*arguments).jaxpr.jaxpr)
        started = time.perf_counter()
        self.compiled = steps.train.compiled(*arguments)
        self.compile_seconds = time.perf_counter() - started

    def estimate(self, chip: chips.Chip) -> chips.Roofline:
        """At best."""
        trained, optimizer, frozen = map(
            loop.bytes_per_device, (self.state.trainable, self.state.opt_state, self.frozen)
        )
        temporary = self.compiled.memory_analysis().temp_size_in_bytes
        moved = chips.memory_traffic(trained + frozen, trained + optimizer, temporary, passes=3)
        return chips.roofline(chip, self.flops, moved, 0)

    def step(self) -> float:
        self.state, record = self.compiled(self.batch, self.state, self.frozen, self.rng)
        return float(record['step_loss'])


class Theirs:
    """The same in PyTorch."""

    def __init__(self, system, params, features, feature_lengths, batch, device):
        t5 = system.llm.config
        llm = unscanned(foundations.flatten(params['llm']), t5.num_encoder_layers)
        params = params | {'llm': foundations.unflatten(llm)}
        model = bench_pytorch.TorchSlm(system, params).to(device)
        model.encoder.bfloat16()
        model.llm.bfloat16()
        model.llm.config.use_cache = False
        self.model, self.device = model, device
        self.attention = model.llm.config._attn_implementation
        self.features = torch.from_numpy(features).to(device, torch.bfloat16)
        self.lengths = torch.from_numpy(feature_lengths).to(device)
        self.tokens = [
            torch.from_numpy(batch[f'{name}_tokens'].astype(np.int64)).to(device)
            for name in ('encoder_input', 'decoder_input', 'decoder_target')
        ]
        self.optimizer = torch.optim.AdamW(
            model.adapter.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.0, fused=device == 'cuda'
        )
        self.loss = torch.compile(model.loss, dynamic=False)

    def compile_without_attention(self) -> None:
        """For versions of PyTorch whose compiler fails on the attention of Gemma 3n's encoder: all else is compiled."""
        torch._dynamo.reset()
        for block in self.model.encoder.conformer:
            for name in ('ffw_layer_start', 'lconv1d', 'ffw_layer_end'):
                getattr(block, name).compile(dynamic=False)
        for block in (self.model.adapter, *self.model.llm.encoder.block, *self.model.llm.decoder.block):
            block.compile(dynamic=False)
        self.loss = self.model.loss

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.loss(self.features, self.lengths, *self.tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.adapter.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def median(step, rounds: int) -> float:
    """Median seconds of a step, after two."""
    for _ in range(2):
        step()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=16)
    parser.add_argument('--seconds', type=float, default=15.0)
    parser.add_argument('--target_length', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--gin_file', default='models/slm_large.gin')
    args = parser.parse_args()
    system, batch = slm_step.configured(args)
    frontend = system.speech_encoder.frontend
    features, lengths = map(np.asarray, jax.jit(frontend)(batch['speech_samples'], batch['speech_lengths']))
    device = jax.devices()[0]
    ours = Ours(system, batch)
    loss, seconds = ours.step(), median(ours.step, args.rounds)
    print(f'{device.device_kind}: {args.rows} clips of {args.seconds:g} s, {args.target_length} target tokens')
    print(f'slm_jax: loss {loss:.4f}, {1000 * seconds:.1f} ms a step, compiled in {ours.compile_seconds:.0f} s')
    print(loop.memory_report(ours.compiled, ours.state, ours.frozen, device))
    stats = device.memory_stats() or {}
    print(f'most memory in use: {stats.get("peak_bytes_in_use", 0) / 1e9:.2f} GB')
    chip = next((chip for name, chip in chips.CHIPS.items() if name in device.device_kind.lower()), None)
    if chip is not None:
        best = ours.estimate(chip)
        print(
            f'estimate: {1000 * best.seconds:.1f} ms at best ({1000 * best.compute:.1f} ms of products, '
            f'{1000 * best.memory:.1f} ms of memory), MFU {best.mfu:.0%}; measured MFU '
            f'{ours.flops / (seconds * chip.bf16):.0%} of {chip.bf16 / 1e12:.0f} TFLOP/s'
        )
    theirs = Theirs(system, ours.params, features, lengths, batch, 'cuda' if torch.cuda.is_available() else 'cpu')
    compiled = 'compiled'
    try:
        their_loss = theirs.step()
    except torch._inductor.exc.InductorError as error:
        compiled = f"all but the encoder's attention compiled ({str(error).splitlines()[0]})"
        theirs.compile_without_attention()
        their_loss = theirs.step()
    their_seconds = median(theirs.step, args.rounds)
    about = f'PyTorch {torch.__version__} ({theirs.attention}, {compiled})'
    print(f'{about}: loss {their_loss:.4f}, {1000 * their_seconds:.1f} ms a step')
    if torch.cuda.is_available():
        print(f'most memory in use: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB')
    if abs(loss - their_loss) > _LOSSES_APART * loss:
        raise SystemExit('they do not compute the same: no comparison')
    print(f'slm_jax takes {seconds / their_seconds:.2f} of the time')


if __name__ == '__main__':
    main()
