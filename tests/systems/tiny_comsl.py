"""A ComSL small enough for any test, its parameters and a batch; numbers without state, so that goldens need none."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.adapters.conv1d import Conv1dAdapter, Conv1dConfig
from slm_jax.audio.frontends import WhisperFrontend
from slm_jax.encoders import whisper
from slm_jax.foundations import flatten, unflatten
from slm_jax.llms.mbart import MBart, MBartConfig
from slm_jax.systems.comsl import ComSL, ComSlConfig
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.training.setup import least_batch

VOCABULARY, WIDTH, SECONDS = 41, 12, 1.0
MASK, FRENCH, ENGLISH = 40, 38, 39
LLM = MBartConfig(
    vocab_size=VOCABULARY, emb_dim=WIDTH, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, mlp_dim=20,
    max_positions=80,
)  # fmt: skip
SPEECH = whisper.OneWindowConfig(num_layers=2, emb_dim=8, num_heads=2, mlp_dim=32, seconds=SECONDS)


def system(llm=LLM, speech=SPEECH, **fields):
    encoder = SpeechEncoder(WhisperFrontend(), whisper.WhisperEncoder(speech))
    config = ComSlConfig(**{'mask_token': MASK, 'erm_layer': 1, **fields})
    return ComSL(encoder, Conv1dAdapter(Conv1dConfig(output_dim=llm.emb_dim)), MBart(llm), config)


def params(comsl):
    """Parameters of which none is what it would be at the start; each a function of its path."""
    shapes = nn.unbox(jax.eval_shape(lambda: comsl.init(jax.random.key(0), least_batch())))
    leaves = {}
    for path, leaf in flatten(shapes).items():
        value = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(leaf.shape)
        fan_in = np.prod(leaf.shape[-3:-1]) if path.endswith('kernel') and leaf.ndim > 2 else leaf.shape[0]
        value *= 0.2 if path.endswith(('bias', 'scale', 'embedding', 'embed_positions')) else fan_in**-0.5
        value *= not path.endswith('logits_bias')  # the authors' code has none
        leaves[path] = jnp.asarray(value + path.endswith('scale'), jnp.float32)
    return unflatten(leaves)


def padded(rows, width):
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)


# Each with an end; none is as long as its batch.
TRANSCRIPTS = [[5, 6, 7, 8, 9, 1], [10, 11, 1], [12, 13, 14, 15, 1]]
TRANSLATIONS = [[20, 21, 22, 1], [23, 24, 25, 26, 1], [27, 1]]


def batch(rows=3, seconds=SECONDS, wider=0):
    """Noise of all lengths, French, with its transcript and English translation."""
    rng = np.random.default_rng(0)
    samples = (2000 * rng.standard_normal((3, round(16_000 * seconds)))).astype(np.int16)
    lengths = np.array([samples.shape[1], samples.shape[1] * 2 // 3, samples.shape[1] // 2], np.int32)
    targets = padded([[ENGLISH, *text] for text in TRANSLATIONS], 7 + wider)
    found = {
        'speech_samples': np.where(np.arange(samples.shape[1]) < lengths[:, None], samples, 0).astype(np.int16),
        'speech_lengths': lengths,
        'encoder_input_tokens': padded([[FRENCH, -1, 1]] * 3, 8 + wider),
        'teacher_input_tokens': padded([[FRENCH, *text] for text in TRANSCRIPTS], 8 + wider),
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': (targets > 0).astype(np.float32),
    }
    return {name: array[:rows] for name, array in found.items()}


def masked(width):
    """The tokens that are masked in the comparison with the authors' code."""
    which = np.zeros((3, width), bool)
    which[[0, 0, 1, 2], [2, 4, 1, 3]] = True
    return which


def with_config(comsl, **fields):
    return dataclasses.replace(comsl, config=dataclasses.replace(comsl.config, **fields))
