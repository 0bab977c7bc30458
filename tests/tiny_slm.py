"""An SLM with LoRA that trains in seconds, by the packaged gin files, on foundations of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from slm_jax import configuration, foundations, llms
from slm_jax.importers import decoder_only as importers_decoder_only
from slm_jax.importers import mbart as importers_mbart
from slm_jax.importers import t5 as importers_t5
from slm_jax.inference import model
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig
from slm_jax.llms.mbart import MBart, MBartConfig
from slm_jax.llms.t5 import T5, T5Config

GIN = """
from __gin__ import dynamic_registration
from slm_jax.adapters import slm as adapter
from slm_jax.audio import frontends
from slm_jax.encoders import usm
from slm_jax.systems import speech_encoder
include 'models/slm.gin'
include '{llm}/model.gin'
include 'models/lora.gin'
FOUNDATIONS = {{'speech_encoder': '{folder}/encoder', 'llm': '{llm}'}}
LORA_RANK = 2
LORA_MODULES = ('llm/.*/(query|value|out|wi_0|wo)',)
usm.UsmConfig:
  num_layers = 1
  emb_dim = 16
  num_heads = 2
  subsample_channels = (4, 4)
usm.UsmEncoder.config = @usm.UsmConfig()
speech_encoder.SpeechEncoder:
  frontend = @frontends.UsmFrontend()
  encoder = @usm.UsmEncoder()
adapter.SlmAdapterConfig:
  output_dim = 16
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 16
"""
T5_SIZES = dict(emb_dim=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=3, head_dim=6, mlp_dim=20)
LLMS = {
    'llama': DecoderOnly(
        DecoderOnlyConfig(
            vocab_size=384, emb_dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20,
            qkv_bias=True, logits_via_embedding=True,
        )
    ),
    't5': T5(T5Config(384, **T5_SIZES)),
    'scanned t5': T5(T5Config(384, **T5_SIZES, scan_layers=True)),
    'mbart': MBart(MBartConfig(384, emb_dim=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=3, mlp_dim=20)),
}  # fmt: skip


def random_params(llm, seed=0):
    """Parameters none of which is what it would be at the start, so that answers depend on what is read."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(lambda: llms.initial_params(llm, jax.random.key(0))))
    leaves = {}
    for path, leaf in foundations.flatten(shapes).items():
        value = rng.standard_normal(leaf.shape) * (1.0 if path.endswith('embedding') else 16**-0.5)
        leaves[path] = jnp.asarray(1 + 0.3 * value if path.endswith('scale') else value, jnp.float32)
        if path.endswith('rel_embedding') and leaf.ndim == 3:
            leaves[path] = jnp.broadcast_to(leaves[path][:, :1], leaf.shape)
    return foundations.unflatten(leaves)


def write(folder, kind, bindings=()):
    """Foundations in `folder`, and the configuration parsed; the system of it."""
    llm, place = LLMS[kind], folder / 'llm'
    params = random_params(llm)
    card = {'name': 'llm', 'kind': 'llm', 'vocabulary': 'bytes', 'extra_ids': 125}
    foundations.save(place, params, card)
    blocks = jax.tree.map(lambda leaf: foundations.Blocks(leaf.shape, leaf.dtype, lambda a, b: leaf[a:b]), params)
    if kind == 'llama':
        text = importers_decoder_only.model_file(llm.config, blocks, '{user}', 'a test', place)
    elif kind == 'mbart':
        text = importers_mbart.model_file(llm.config, blocks, 'a test', place)
    else:
        text = importers_t5.model_file(llm.config, blocks, 'a test', place)
    (place / 'model.gin').write_text(text)
    (folder / 'slm.gin').write_text(GIN.format(folder=folder, llm=place))
    system = configured(folder, bindings)
    speech = jax.jit(system.speech_encoder.init)(jax.random.key(0), jnp.zeros((1, 8000), jnp.int16), jnp.array([8000]))
    foundations.save(folder / 'encoder', nn.unbox(speech)['params'], {'name': 'encoder', 'kind': 'speech_encoder'})
    return system


def configured(folder, bindings=()):
    """The system of `slm.gin` with some bindings."""
    configuration.parse_gin([str(folder / 'slm.gin')], list(bindings))
    return model.configured_system()


def batch(step=0, rows=3):
    """Noise, and texts of bytes."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(3, 259, (2, rows, 6)).astype(np.int32)
    return {
        'speech_samples': rng.integers(-2000, 2000, (rows, 8000)).astype(np.int16),
        'speech_lengths': np.full(rows, 8000, np.int32),
        'encoder_input_tokens': tokens[0],
        'decoder_input_tokens': np.pad(tokens[1], ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': tokens[1],
        'decoder_loss_weights': np.ones((rows, 6), np.float32),
    }


class Loader:
    """Batches that are functions of their step."""

    skipped = ()

    def batches(self, start_step, host_rows=None):
        while True:
            yield start_step, batch(start_step)
            start_step += 1

    def batch_shapes(self):
        return [{name: (array.shape, array.dtype) for name, array in batch().items()}]

    def state(self):
        return {'rows': 3}


def train(folder, steps, run='run', **options):
    """Trains what is configured, as TRAINABLE says, into a directory of `folder`."""
    from slm_jax.train import train as program

    arguments = {
        'system': model.configured_system(),
        'loader': Loader(),
        'optimizer': optax.adam(3e-2),
        'foundations': model.query('%FOUNDATIONS'),
        'trainable': model.query('%TRAINABLE'),
        'eval_period': 100,
        'num_samples': 0,
        'tensorboard': False,
    }
    return program(model_dir=folder / run, train_steps=steps, **(arguments | options))
