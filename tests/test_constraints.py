"""Every model names the axes of its activations: all modules of the rooms of models are traced, and found here."""

import importlib
import inspect
import pkgutil

import constraints
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from slm_jax import adapters, encoders, llms
from slm_jax.adapters import phrase_keys
from slm_jax.adapters.conv1d import Conv1dAdapter, Conv1dConfig
from slm_jax.adapters.slm import SlmAdapter, SlmAdapterConfig
from slm_jax.adapters.ssr import SsrCompressor, SsrConfig
from slm_jax.adapters.token_ctc import TokenCtcAdapter, TokenCtcConfig
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders import aligners, best_rq, cif, ctc, monotonic, usm, w2v_bert, whisper
from slm_jax.encoders.spelling import Spelling
from slm_jax.llms import decoder_only, grown, mbart, t5
from slm_jax.systems.text_to_text import generate
from slm_jax.training import partitioning

LENGTHS = jnp.array([9, 4], jnp.int32)
FRAMES = jnp.ones((2, 12, 160))
TOKENS = jnp.ones((2, 6), jnp.int32)
SLM = dict(output_dim=24, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)
T5 = dict(vocab_size=64, emb_dim=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, head_dim=8, mlp_dim=32)
LLAMA = dict(vocab_size=64, emb_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32)
OPT = LLAMA | dict(norm='layer', positions='learned', max_positions=16, embed_dim=8, norm_first=False, final_norm=False)
MBART = dict(vocab_size=64, emb_dim=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, mlp_dim=32)
ALIGNER = dict(spelling=Spelling(vocab_size=32), emb_dim=16, num_layers=2)
TRANSFORMER = ALIGNER | dict(num_heads=2, mlp_dim=32)
W2V = dict(num_layers=2, emb_dim=16, num_heads=2, mlp_dim=32, adapter_dim=24)

# A new model has to stand here, with one example for each of its ways.
EXAMPLES = {
    'usm': (usm.UsmEncoder(usm.UsmConfig(2, 16, 2, remat_policy='minimal')), FRAMES, LENGTHS),
    "usm, Gemma 4's": (
        usm.UsmEncoder(usm.UsmConfig(2, 16, 2, subsample_norm='layer', clipped_linears=True, output_dim=24)),
        FRAMES,
        LENGTHS,
    ),
    'whisper': (whisper.WhisperEncoder(whisper.WhisperConfig(2, 16, 2, 32)), FRAMES, LENGTHS),
    'whisper, in windows': (
        whisper.WhisperEncoder(whisper.WhisperConfig(2, 16, 2, 32, window_seconds=1.0)),
        FRAMES,
        LENGTHS,
    ),
    'w2v-BERT': (w2v_bert.W2vBertEncoder(w2v_bert.W2vBertConfig(**W2V, num_adapter_layers=1)), FRAMES, LENGTHS),
    'w2v-BERT, relative': (
        w2v_bert.W2vBertEncoder(w2v_bert.W2vBertConfig(**W2V, positions='relative', intermediate_ffn=True)),
        FRAMES,
        LENGTHS,
    ),
    'ctc': (ctc.CtcHead(32), FRAMES),
    'aligner, ctc': (aligners.CtcAligner(aligners.TransformerConfig(**TRANSFORMER)), FRAMES, LENGTHS),
    'aligner, cif': (cif.CifAligner(cif.CifConfig(**TRANSFORMER)), FRAMES, LENGTHS),
    'aligner, monotonic': (
        monotonic.MonotonicAligner(monotonic.MonotonicConfig(**ALIGNER)),
        *(FRAMES, LENGTHS, TOKENS, jnp.array([6, 3])),
    ),
    'aligner, external': (aligners.ExternalAligner(25.0), FRAMES, LENGTHS, TOKENS, LENGTHS, jnp.ones((2, 6))),
    'best_rq': (best_rq.BestRqHead(best_rq.BestRqConfig(2, 32)), FRAMES),
    'adapter': (SlmAdapter(SlmAdapterConfig(**SLM)), FRAMES, LENGTHS),
    'adapter, conv': (SlmAdapter(SlmAdapterConfig(**SLM, reduction='conv', remat_policy='full')), FRAMES, LENGTHS),
    'adapter, tokens': (
        TokenCtcAdapter(TokenCtcConfig(**SLM, label_counts=(1,) * 31)),
        *(FRAMES, LENGTHS, None, None, jnp.ones((32, 24))),
    ),
    'adapter, two convolutions': (Conv1dAdapter(Conv1dConfig(24)), FRAMES, LENGTHS),
    'compressor': (SsrCompressor(SsrConfig(**SLM)), FRAMES, LENGTHS, jnp.array([[3, 8], [2, 0]]), jnp.array([2, 1])),
    'phrases, speech': (phrase_keys.SpeechKeys(phrase_keys.PhraseKeysConfig(2, 16, 8, 2)), FRAMES, LENGTHS),
    'phrases, text': (phrase_keys.TextKeys(phrase_keys.PhraseKeysConfig(2, 16, 8, 2)), TOKENS),
    't5': (t5.T5(t5.T5Config(**T5)), TOKENS, TOKENS, TOKENS),
    't5, scanned': (t5.T5(t5.T5Config(**T5, scan_layers=True, remat_policy='full')), TOKENS, TOKENS, TOKENS),
    't5, old': (t5.T5(t5.T5Config(**T5, logits_via_embedding=True, mlp_activations=('relu',))), *[TOKENS] * 3),
    'mbart': (mbart.MBart(mbart.MBartConfig(**MBART, remat_policy='minimal')), TOKENS, TOKENS),
    'llama': (decoder_only.DecoderOnly(decoder_only.DecoderOnlyConfig(**LLAMA, sliding_window=3)), *[TOKENS] * 3),
    'opt': (
        decoder_only.DecoderOnly(
            decoder_only.DecoderOnlyConfig(**OPT, logits_via_embedding=True, qk_norm=True, remat_policy='minimal')
        ),
        *[TOKENS] * 3,
    ),
    'llama, grown': (grown.Grown(decoder_only.DecoderOnlyConfig(**LLAMA), 16), *[TOKENS] * 3),
    'opt, grown': (grown.Grown(decoder_only.DecoderOnlyConfig(**OPT), 16, True), *[TOKENS] * 3),
}


@pytest.fixture
def tracing():
    """tracing(generation): a mesh of one device, whose constraints are those of any."""
    partitioner = partitioning.Partitioner()
    return lambda generation=False: partitioner.tracing(partitioner.mesh(jax.devices()[:1]), generation)


def initialised(module, *inputs):
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs).get('params', {}))


@pytest.mark.parametrize('name', EXAMPLES)
def test_every_product_with_weights_is_named_before_the_next(name, tracing):
    module, *inputs = EXAMPLES[name]
    params = initialised(module, *inputs)
    with tracing():
        assert not constraints.unnamed(
            lambda params, *inputs: module.apply({'params': params}, *inputs), params, *inputs
        )


@pytest.mark.parametrize('name', ['t5', 't5, scanned', 't5, old', 'mbart', 'llama', 'opt', 'llama, grown'])
def test_so_it_is_in_a_step_of_decoding(name, tracing):
    module, *inputs = EXAMPLES[name]

    def generated(params, embeddings, mask):
        return generate(module, params, embeddings, mask, DecodeConfig('beam', 8, beam_size=2))

    params = initialised(module, *inputs)
    with tracing(generation=True):
        assert not constraints.unnamed(generated, params, jnp.ones((2, 6, 16)), jnp.ones((2, 6), bool))


def test_a_model_without_constraints_is_found(tracing):
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(8)(x))
            x = nn.with_logical_constraint(nn.Dense(8)(x), ('bach', 'length', 'embed'))  # no rule names it
            return nn.with_logical_constraint(nn.Dense(8)(x), ('batch', 'length', 'embed'))

    x = jnp.ones((2, 3, 4))
    params = initialised(Bare(), x)
    with tracing():
        found = constraints.unnamed(lambda params, x: Bare().apply({'params': params}, x), params, x)
    assert len(found) == 1, found  # of the first two: both have this shape


def test_no_module_is_left_out():
    defined = {
        value
        for room in (encoders, llms, adapters)
        for info in pkgutil.walk_packages(room.__path__, f'{room.__name__}.')
        for value in vars(importlib.import_module(info.name)).values()
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == info.name
    }
    traced = set()

    def note(call, args, kwargs, context):
        traced.add(type(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        for module, *inputs in EXAMPLES.values():
            initialised(module, *inputs)
    bases = {base for kind in traced for base in kind.__mro__}  # nn.scan and nn.remat make classes of their own
    missing = {f'{kind.__module__}.{kind.__name__}' for kind in defined - bases}
    assert not missing, f'{missing}: give EXAMPLES one of each, so that its constraints are looked for.'
