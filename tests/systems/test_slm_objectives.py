"""What trains an SLM's adapter besides the language model's cross-entropy: CTC on its tokens."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.adapters.slm import SlmAdapter, SlmAdapterConfig
from slm_jax.adapters.token_ctc import TokenCtcAdapter, TokenCtcConfig
from slm_jax.audio.frontends import UsmFrontend
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders.ctc import ctc_loss
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig
from slm_jax.systems.slm import SLM
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.training import state

TOKENS = (-1, 7, 12, 30, 31)
SIZES = dict(output_dim=32, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_layers=1, reduction_factor=2)
ADAPTER = TokenCtcAdapter(TokenCtcConfig(**SIZES, label_counts=(1, 2, 3, 4)))


class Encoder(nn.Module):
    """25 frames a second, each by itself, of which no two are alike."""

    @nn.compact
    def __call__(self, features, lengths, deterministic):
        frames = nn.Dense(32)(features[:, ::4])
        return 9 * jnp.sin(frames + jnp.arange(frames.shape[1])[:, None] * jnp.arange(32)), -(-lengths // 4)


SPEECH = SpeechEncoder(UsmFrontend(), Encoder())
LLM = DecoderOnly(
    DecoderOnlyConfig(vocab_size=40, emb_dim=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64)
)
CTC = SLM(SPEECH, ADAPTER, LLM, label_tokens=TOKENS, objective='ctc')
TARGETS = [[7, 12, 7, 1], [12, 31, 1, 0], [5, 30, 1, 0]]  # 5 is no label


def batch(targets=TARGETS, lengths=(16_000, 9_000, 6_321), samples=16_000):
    """Rows of noise, and what is to be written of them."""
    waves = np.random.default_rng(0).integers(-2000, 2000, (3, 20_000))[: len(lengths)]
    targets, valid = np.array(targets, np.int32), np.arange(samples) < np.array(lengths)[:, None]
    return {
        'speech_samples': np.where(valid, waves[:, :samples], 0).astype(np.int16),
        'speech_lengths': np.array(lengths, np.int32),
        'encoder_input_tokens': np.full((len(lengths), 3), 9, np.int32),
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': (targets > 0).astype(np.float32),
    }


@pytest.fixture(scope='module')
def params():
    """Parameters none of which is at its start."""
    leaves, tree = jax.tree.flatten(nn.unbox(jax.jit(CTC.init)(jax.random.key(0), batch())))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [x + 0.3 * rng.normal(size=x.shape).astype('f') for x in leaves])


@functools.partial(jax.jit, static_argnums=0)
def loss_of(system, params, data):
    return system.loss(params, data, None)


def label_logits(params, data):
    heard = SPEECH.apply({'params': params['speech_encoder']}, data['speech_samples'], data['speech_lengths'])
    embeddings = LLM.apply({'params': params['llm']}, np.maximum(TOKENS, 0), method='embed')
    return ADAPTER.apply({'params': params['adapter']}, *heard, True, embeddings, method='label_logits')


def test_the_loss_is_ctc_of_the_tokens_that_are_labels(params):
    data = batch()
    logits, lengths = label_logits(params, data)
    labels = jnp.array([[1, 2, 1], [2, 4, 0]])
    expected = ctc_loss(logits[:2], lengths[:2], labels)
    two = {name: array[:2] for name, array in data.items()}
    loss, metrics = loss_of(CTC, params, two)
    np.testing.assert_allclose(loss, jnp.sum(expected) / 5, rtol=1e-5)
    assert metrics['loss'][1] == 5 and metrics['too_many_labels'] == (0, 2) and metrics['not_labels'] == (0, 5)
    # A token that is no label may be any of them: with one label all told, it is that one.
    loss, metrics = loss_of(CTC, params, data)
    assert metrics['loss'][1] == 7 and metrics['not_labels'] == (1, 7)
    assert loss * 7 > jnp.sum(expected)


def test_a_token_that_is_no_label_is_spelt_by_several(params):
    """5 as 7 and 12; 13 has no spelling, and may be any label."""
    spellings = tuple({7: (1,), 12: (2,), 30: (3,), 31: (4,), 5: (1, 2)}.get(token, ()) for token in range(32))
    system = dataclasses.replace(CTC, spellings=spellings)
    spelt = loss_of(system, params, batch([[5, 7, 1, 0], [12, 31, 1, 0], [30, 5, 1, 0]]))
    whole = loss_of(CTC, params, batch([[7, 12, 7, 1], [12, 31, 1, 0], [30, 7, 12, 1]]))
    np.testing.assert_allclose(spelt[0], whole[0], rtol=1e-6)
    assert spelt[1]['loss'][1] == 8 and spelt[1]['not_labels'] == (0, 6)
    any_label = loss_of(system, params, batch([[13, 35, 1], [12, 31, 1], [30, 7, 1]]))
    assert any_label[1]['not_labels'] == (2, 6)
    expected = loss_of(CTC, params, batch([[5, 9, 1], [12, 31, 1], [30, 7, 1]]))[0]
    np.testing.assert_allclose(any_label[0], expected, rtol=1e-6)
    long = loss_of(system, params, batch([[5] * 30 + [1], [12, 31] + 29 * [0], [30] + 30 * [0]]))
    assert long[1]['too_many_labels'] == (1, 3) and long[1]['loss'][1] == 3


def test_only_rows_with_speech_count(params):
    alone = loss_of(CTC, params, {name: array[:1] for name, array in batch().items()})[0]
    among = batch(lengths=(16_000, 0, 320))  # no speech; too little for two tokens
    loss, metrics = loss_of(CTC, params, among)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    assert metrics['too_many_labels'] == (1, 2)
    text = batch(lengths=(0, 0, 0), samples=0)
    assert loss_of(CTC, params, text)[0] == 0
    assert jax.tree.structure(loss_of(CTC, params, text)[1]) == jax.tree.structure(metrics)


def test_padding_changes_nothing(params):
    wide = batch([[*row, 0, 0] for row in TARGETS], samples=20_000)
    np.testing.assert_allclose(loss_of(CTC, params, wide)[0], loss_of(CTC, params, batch())[0], rtol=1e-5)


def test_the_gradient_is_the_adapters_and_no_language_model_is_in_the_loop(params):
    without = state.read(CTC, params)
    assert without.keys() == params.keys() and without['llm'].keys() == {'token_embedder'}
    assert loss_of(CTC, without, batch())[0] == loss_of(CTC, params, batch())[0]
    of = jax.jit(jax.grad(lambda adapter: CTC.loss({**params, 'adapter': adapter}, batch(), None)[0]))(
        params['adapter']
    )
    assert (of.pop('residual_projection')['kernel'] == 0).all()  # it is the language model's
    assert all(map(jnp.any, jax.tree.leaves(of)))


def test_what_is_read_of_the_language_model():
    both = dataclasses.replace(CTC, objective={'cross_entropy': 1.0, 'ctc': 1.0})
    assert both.reads is None and state.read(both, {'any': {'tree': 1}}) == {'any': {'tree': 1}}
    narrow = DecoderOnly(dataclasses.replace(LLM.config, embed_dim=24))
    of_another = dataclasses.replace(CTC, llm=narrow).reads
    assert set(of_another) > set(CTC.reads) and any('project_in' in pattern for pattern in of_another)


def test_it_answers_with_what_ctc_writes(params):
    data = batch(lengths=(16_000, 9_000, 0))
    logits, lengths = label_logits(params, data)
    for own, wanted in zip(CTC.ctc_logits(params, data), (logits, lengths), strict=True):
        np.testing.assert_array_equal(own, wanted)
    assert CTC.ctc_tokens == TOKENS
    best = np.where(np.arange(logits.shape[1]) < lengths[:, None], np.argmax(logits, axis=-1), 0)
    answers = np.asarray(jax.jit(CTC.predict, static_argnums=2)(state.read(CTC, params), data, DecodeConfig()))
    for row, heard in zip(answers, best, strict=True):
        written = [TOKENS[label] for label, before in zip(heard, [0, *heard], strict=False) if label not in (0, before)]
        assert row[: len(written) + 1].tolist() == [*written, 1] and not row[len(written) + 1 :].any()
    assert answers[2, 0] == 1 and max(map(np.count_nonzero, answers)) > 2
    nothing = CTC.predict(params, batch(lengths=(0, 0, 0), samples=0), DecodeConfig())
    assert (nothing[:, 0] == 1).all() and not nothing[:, 1:].any()
    silent = data | {'speech_samples': np.where([[True], [False], [False]], np.int16(-3), data['speech_samples'])}
    system = dataclasses.replace(CTC, objective='cross_entropy', ctc_answers=True)
    found = np.asarray(jax.jit(system.predict, static_argnums=2)(params, silent, DecodeConfig()))
    assert found[0, 0] == 1 and not found[0, 1:].any()
    np.testing.assert_array_equal(found[1:], answers[1:])


def test_the_language_model_reads_the_segments(params):
    system, data = dataclasses.replace(CTC, objective='cross_entropy'), batch()
    loss, metrics = loss_of(system, params, data)
    assert metrics['loss'][1] == 10 and metrics['speech_text_cosine'][1] == 3
    other = {**data, 'speech_samples': data['speech_samples'][::-1]}
    assert abs(loss - loss_of(system, params, other)[0]) > 1e-4
    of = jax.jit(jax.grad(lambda adapter: system.loss({**params, 'adapter': adapter}, data, None)[0]))(
        params['adapter']
    )
    of.pop('blank')  # it says where segments are, and not what
    assert all(map(jnp.any, jax.tree.leaves(of)))


def test_where_its_ctc_hears_nothing_the_answer_is_empty(params):
    system, data = dataclasses.replace(CTC, ctc_answers=False), batch()
    answer = jax.jit(system.predict, static_argnums=2)

    def answers(bias):
        blank = {**params['adapter']['blank'], 'bias': jnp.array([bias])}
        of = {**params, 'adapter': {**params['adapter'], 'blank': blank}}
        return np.asarray(answer(of, data, DecodeConfig(max_decode_length=4)))

    assert (answers(-9.0)[:, 0] > 1).all()
    logits, lengths = label_logits(params, data)
    valid = np.arange(logits.shape[1])[:, None] < lengths[:, None, None]
    surest = np.max(jax.nn.softmax(logits)[..., 1:], axis=(1, 2), where=valid, initial=0)
    least, next_to_it, _ = np.sort(surest)
    assert least < next_to_it
    surer = dataclasses.replace(system, heard_from=float(least + next_to_it) / 2)
    usual, found = (
        of(params, data, DecodeConfig(max_decode_length=4)) for of in (answer, jax.jit(surer.predict, static_argnums=2))
    )
    np.testing.assert_array_equal(found, np.where((surest == least)[:, None], [1, 0, 0, 0], usual))
    assert (np.asarray(usual)[:, 0] > 1).all()
    assert (answers(99.0) == [1, 0, 0, 0]).all()


def test_the_language_model_and_ctc_write_a_transcript_together(params):
    """With nearly all the weight CTC's tokens, in the rows that ask for a transcript; with none the LLM's alone."""
    system, data = dataclasses.replace(CTC, objective='cross_entropy'), batch()
    sure = {**params, 'adapter': {**params['adapter'], 'logit_scale': params['adapter']['logit_scale'] + 5}}

    def written(weight, system=system, **given):
        decode = DecodeConfig(max_decode_length=24, ctc_weight=weight)
        return np.asarray(jax.jit(system.predict, static_argnums=2)(sure, data | given, decode))

    alone, both, spelt = written(0.0), written(0.99), written(0.0, CTC)
    for row, labels in zip(both, spelt, strict=True):
        spelling = [token for token in labels if token > 1]
        assert [token for token in row if token > 1] == spelling and set(spelling) & set(TOKENS)
    some = written(0.99, transcribed=np.array([True, False, True]))
    np.testing.assert_array_equal(some, np.where([[True], [False], [True]], both, alone))
    other = SLM(SPEECH, SlmAdapter(SlmAdapterConfig(**SIZES)), LLM)
    with pytest.raises(ValueError, match='needs an adapter with a CTC head .as in models/slm_base.gin'):
        shapes = nn.unbox(jax.eval_shape(other.init, jax.random.key(0), data))
        jax.eval_shape(functools.partial(other.predict, decode=DecodeConfig(ctc_weight=0.5)), shapes, data)


def test_objectives_are_mixed_by_their_weights(params):
    (ctc, alone), (llm, usual), (both, metrics) = (
        loss_of(dataclasses.replace(CTC, objective=objective), params, batch())
        for objective in ('ctc', 'cross_entropy', {'cross_entropy': 0.25, 'ctc': 3})
    )
    np.testing.assert_allclose(both, 0.25 * llm + 3 * ctc, rtol=1e-5)
    expected = {**usual, 'ctc': alone.pop('loss'), **alone}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_errors_name_the_remedy(params):
    for objective in ('ctcc', {}, {'ctc': 0.0}, {'ctc': 1.0, 'ctcc': 1.0}):
        with pytest.raises(ValueError, match='SLM.objective is .*; it must be one of .*, or several with weights'):
            dataclasses.replace(CTC, objective=objective)
    other = dataclasses.replace(CTC, adapter=SlmAdapter(SlmAdapterConfig(**SIZES)))
    for system in (other, dataclasses.replace(CTC, label_tokens=None)):
        with pytest.raises(
            ValueError, match='ctc_answers need an adapter with a CTC head and SLM.label_tokens, as in models/slm_b'
        ):
            system.loss(params, batch(), None)
    with pytest.raises(ValueError, match='SLM.label_tokens has the token 40 and the language model has 40'):
        dataclasses.replace(CTC, label_tokens=(*TOKENS[:-1], 40)).loss(params, batch(), None)
