"""How much memory and time an import takes, on a checkpoint of an mT5's shape (slow: it needs the disk).

    SLM_JAX_IMPORT_GB=6.4 pytest tests/importers/test_import_large.py -m slow -s

is the proof at the size of mT5-XL's layers and embedding (16 GB of free disk); without the variable it is 0.5 GB,
as a checkpoint of T5X always is.
The test prints bytes, seconds per GB and the highest resident memory of the importing process.
"""

import json
import os
import pathlib
import subprocess
import sys

import flax.serialization
import numpy as np
import pytest
import tensorstore

from slm_jax import foundations
from slm_jax.importers import t5 as importers_t5
from slm_jax.llms import t5

# mT5-XL (arXiv 2010.11934) with fewer layers, so many that a file of float32 has the size asked for.
XL = dict(d_model=2048, d_kv=64, d_ff=5120, num_heads=32, vocab_size=250112)
SMALL = dict(d_model=512, d_kv=64, d_ff=1024, num_heads=6, vocab_size=120064)
GOLDEN = pathlib.Path(__file__).parents[1] / 'testdata' / 't5_goldens' / 'mt5'
_RUN = """
import re, sys, time
from slm_jax import import_
start = time.monotonic()
status = import_.main(sys.argv[1:])
# getrusage also counts what the process had that started this one.
peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())
print(status, time.monotonic() - start, time.process_time(), int(peak[1]) * 1024)
"""


def shapes(sizes, layers):
    """Tensors of an mT5 by name."""
    d, ff, inner = sizes['d_model'], sizes['d_ff'], sizes['num_heads'] * sizes['d_kv']
    found = {'shared.weight': (sizes['vocab_size'], d), 'lm_head.weight': (sizes['vocab_size'], d)}
    for stack, attentions in (('encoder', ('SelfAttention',)), ('decoder', ('SelfAttention', 'EncDecAttention'))):
        found[f'{stack}.final_layer_norm.weight'] = (d,)
        bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
        found[bias] = (32, sizes['num_heads'])
        for layer in range(layers):
            for number, attention in enumerate(attentions):
                name = f'{stack}.block.{layer}.layer.{number}'
                found |= {f'{name}.{attention}.{p}.weight': (inner, d) for p in 'qkv'}
                found |= {f'{name}.{attention}.o.weight': (d, inner), f'{name}.layer_norm.weight': (d,)}
            name = f'{stack}.block.{layer}.layer.{len(attentions)}'
            found |= {f'{name}.DenseReluDense.wi_{i}.weight': (ff, d) for i in (0, 1)}
            found |= {f'{name}.DenseReluDense.wo.weight': (d, ff), f'{name}.layer_norm.weight': (d,)}
    return found


def make(directory, sizes, layers, shard_bytes):
    """A sharded checkpoint of random float32; returns its bytes and those of its largest tensor."""
    rng = np.random.default_rng(0)
    shards, weight_map = [[]], {}
    for name, shape in shapes(sizes, layers).items():
        if sum(4 * int(np.prod(s)) for _, s in shards[-1]) > shard_bytes:
            shards.append([])
        shards[-1].append((name, shape))
    for number, own in enumerate(shards):
        header, offset = {}, 0
        for name, shape in own:
            size = 4 * int(np.prod(shape))
            header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [offset, offset + size]}
            weight_map[name] = file = f'model-{number}.safetensors'
            offset += size
        text = json.dumps(header).encode()
        with (directory / file).open('wb') as stream:
            stream.write(len(text).to_bytes(8, 'little') + text)
            for _, shape in own:
                count = int(np.prod(shape))
                for start in range(0, count, 1 << 22):
                    stream.write(rng.standard_normal(min(count - start, 1 << 22), np.float32))
    (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    config = json.loads((GOLDEN / 'config.json').read_text())
    config |= sizes | {'num_layers': layers, 'num_decoder_layers': layers}
    (directory / 'config.json').write_text(json.dumps(config))
    for name in ('spiece.model', 'tokenizer_config.json'):
        (directory / name).write_bytes((GOLDEN / name).read_bytes())
    sizes_in_bytes = [4 * int(np.prod(shape)) for shape in shapes(sizes, layers).values()]
    return sum(sizes_in_bytes), max(sizes_in_bytes)


@pytest.mark.slow
@pytest.mark.parametrize('scanned', [False, True])
def test_memory_does_not_grow_with_the_checkpoint(scanned, tmp_path):
    wanted = float(os.environ.get('SLM_JAX_IMPORT_GB', '0.5')) * 1e9
    sizes = XL if wanted > 5e9 else SMALL
    none, one = (4 * sum(int(np.prod(shape)) for shape in shapes(sizes, layers).values()) for layers in (0, 1))
    layers = max(13 if scanned else 1, round((wanted - none) / (one - none)))
    source = tmp_path / 'source'
    source.mkdir()
    total, largest = make(source, sizes, layers, shard_bytes=2e9)
    run(source, tmp_path / 'out', total, largest, f'{layers} + {layers} layers')


def make_t5x(directory, sizes, layers):
    """A T5X checkpoint of random float32, cut into chunks of 64 MiB as T5X does; returns as `make` does."""
    cfg = t5.T5Config(
        sizes['vocab_size'], sizes['d_model'], sizes['num_heads'], layers, layers, sizes['d_kv'], sizes['d_ff']
    )
    rng, target, written = np.random.default_rng(0), {}, []
    for path, leaf in importers_t5.shapes(cfg).items():
        chunks, longest = list(leaf.shape), int(np.argmax(leaf.shape))
        parts = (n for n in range(1, chunks[longest] + 1) if chunks[longest] % n == 0)
        chunks[longest] //= next(n for n in parts if leaf.size / n <= 2**24)
        spec = {
            'driver': 'zarr', 'dtype': 'float32',
            'kvstore': {'driver': 'file', 'path': f'target.{path.replace("/", ".")}/'},
            'metadata': {'shape': list(leaf.shape), 'chunks': chunks, 'compressor': {'id': 'gzip', 'level': 1}},
        }  # fmt: skip
        place = spec | {'kvstore': f'file://{directory}/{spec["kvstore"]["path"]}'}
        tensorstore.open(place, create=True).result().write(rng.standard_normal(leaf.shape, np.float32)).result()
        target[path] = spec
        written.append(4 * leaf.size)
    content = {'version': 3, 'optimizer': {'target': foundations.unflatten(target), 'state': {}}}
    (directory / 'checkpoint').write_bytes(flax.serialization.msgpack_serialize(content))
    (directory / 'config.gin').write_text("network.T5Config.mlp_activations = ('gelu', 'linear')\n")
    (directory / 'spiece.model').write_bytes((GOLDEN / 'spiece.model').read_bytes())
    return sum(written), max(written)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_checkpoint_of_t5x(tmp_path):
    (tmp_path / 'source').mkdir()
    total, largest = make_t5x(tmp_path / 'source', SMALL, 2)
    run(tmp_path / 'source', tmp_path / 'out', total, largest, 'T5X')


def run(source, out, total, largest, what):
    """Imports in a process of its own and says what it took."""
    done = subprocess.run(
        [sys.executable, '-c', _RUN, str(source), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    status, seconds, busy, peak = map(float, done.stdout.splitlines()[-1].split())
    assert status == 0, done.stderr
    print(
        f'\n{total / 1e9:.2f} GB, {what}, largest tensor {largest / 1e9:.2f} GB: '
        f'{seconds:.0f} s ({busy:.0f} s of a processor), {seconds / total * 1e9:.1f} s/GB, peak {peak / 1e9:.2f} GB'
    )
    assert peak < largest + 1e9
    assert foundations.card(out)['fingerprint']['num_params'] * 4 >= total
    foundations.abstract(out)
