"""A foundation is read straight into its shards: measured in a process of eight simulated devices."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax import foundations
from slm_jax.importers import t5 as importers_t5
from slm_jax.llms import t5

CONFIG = dict(vocab_size=65536, emb_dim=1024, num_heads=8, num_encoder_layers=1, num_decoder_layers=1, head_dim=64)
_LOAD = """
import json, re, sys
import jax
import jax.numpy as jnp
import numpy as np
from slm_jax import foundations
from slm_jax.inference import traces
from slm_jax.llms import t5
from slm_jax.systems import text_to_text
from slm_jax.training import origins, partitioning, state


def peak():  # getrusage also counts what the process had that started this one
    return 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])

path, config, mesh = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
partitioner = partitioning.Partitioner(**mesh)
boxed = traces.abstract_params(text_to_text.TextToText(t5.T5(t5.T5Config(**config, mlp_dim=2048))))
wanted = origins.place(state.unboxed(boxed), partitioner.shardings(boxed, partitioner.mesh()))
wanted = origins.cast(wanted, jnp.bfloat16)
found = origins.find({'llm': path})
foundations.stored_tree(found[0].directory)  # Orbax has been imported
before = peak()
params = jax.block_until_ready(origins.load(found, wanted))['llm']
growth = peak() - before
held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
shards = {}
for name in ('token_embedder/embedding', 'decoder/logits_dense/kernel'):
    leaf = foundations.flatten(params)[name]
    assert leaf.dtype == jnp.bfloat16
    shards[name] = leaf.addressable_shards[0].data.shape
    for shard in leaf.addressable_shards:
        rows = np.arange(leaf.shape[0])[shard.index[0]]
        np.testing.assert_array_equal(np.asarray(shard.data[:, 0], np.float32), rows % 251)
print(json.dumps({'devices': jax.device_count(), 'growth': growth, 'held': held, 'shards': shards}))
"""


@pytest.fixture(scope='module')
def foundation(tmp_path_factory):
    """A T5 of 305 MB in bfloat16; every row of its arrays holds its number modulo 251."""

    def leaf(shape):
        def read(start, stop):
            rows = np.arange(start, stop).reshape(-1, *[1] * (len(shape) - 1)) % 251
            return np.broadcast_to(rows.astype(jnp.bfloat16), (stop - start, *shape[1:]))

        return foundations.Blocks(shape, jnp.bfloat16, read)

    shapes = importers_t5.shapes(t5.T5Config(**CONFIG, mlp_dim=2048))
    params = foundations.unflatten({path: leaf(value.shape) for path, value in shapes.items()})
    path = tmp_path_factory.mktemp('foundation') / 'wide'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foundations, '_BLOCK_BYTES', 2**21)  # each device has one in flight
        foundations.save(path, params, {'name': 'wide', 'kind': 'llm'})
    return path


@pytest.mark.parametrize(
    ('mesh', 'shards'),
    [
        ({'data': 1, 'fsdp': 1, 'model': 8}, [[8192, 1024], [1024, 8192]]),
        ({'data': 1, 'fsdp': 4, 'model': 2}, [[32768, 256], [256, 32768]]),
    ],
)
def test_each_device_gets_its_shard_and_the_host_no_copy(foundation, mesh, shards, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
    done = subprocess.run(
        [sys.executable, '-c', _LOAD, str(foundation), json.dumps(CONFIG), json.dumps(mesh)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f'{mesh}: held {found["held"] / 1e6:.0f} MB, memory grew by {found["growth"] / 1e6:.0f} MB')
    assert found['devices'] == 8 and list(found['shards'].values()) == shards
    assert found['growth'] < 1.5 * found['held']  # a copy of the whole beside the shards would make it 2
