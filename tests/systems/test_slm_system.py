"""SLM: positions and masks of its prompt, invariances, and the sizes of the paper's configuration."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax import configuration
from slm_jax.adapters.slm import SlmAdapter, SlmAdapterConfig
from slm_jax.audio.frontends import UsmFrontend
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.data.prompts import SPEECH as MARK
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.llms import initial_params
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig
from slm_jax.llms.mbart import MBart, MBartConfig
from slm_jax.llms.t5 import T5, T5Config
from slm_jax.systems.encoder_ctc import EncoderCtc
from slm_jax.systems.slm import SLM
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.systems.text_to_text import TextToText

SPEECH = SpeechEncoder(
    UsmFrontend(),
    UsmEncoder(UsmConfig(num_layers=1, emb_dim=32, num_heads=2, context_right=4, subsample_channels=(4, 4))),
    ctc_vocab_size=20,
    augmentation=SpecAugmentConfig(),
)
LLM = T5(
    T5Config(
        vocab_size=40, emb_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=16, mlp_dim=64
    )
)
ADAPTER = SlmAdapter(SlmAdapterConfig(output_dim=32, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64))
SYSTEM = SLM(SPEECH, ADAPTER, LLM)


def batch(lengths=(16_000, 9_000, 4_321), samples=16_000, inputs=5, targets=4):
    """Rows of noise; row i has 2 + i % 2 instruction tokens and 1 + i % 3 target tokens, before their ends."""
    rng = np.random.default_rng(0)
    waves = rng.integers(-2000, 2000, (len(lengths), 20_000)).astype(np.int16)
    instruction, target = np.zeros((2, len(lengths), 12), np.int32)
    for i in range(len(lengths)):
        instruction[i, : 3 + i % 2] = [*rng.integers(3, 40, 2 + i % 2), 1]
        target[i, : 2 + i % 3] = [*rng.integers(3, 40, 1 + i % 3), 1]
    valid = np.arange(samples) < np.array(lengths)[:, None]
    target = target[:, :targets]
    return {
        'speech_samples': np.where(valid, waves[:, :samples], 0).astype(np.int16),
        'speech_lengths': np.array(lengths, np.int32),
        'encoder_input_tokens': instruction[:, :inputs],
        'decoder_input_tokens': np.pad(target, ((0, 0), (1, 0)))[:, :targets],
        'decoder_target_tokens': target,
        'decoder_loss_weights': (target > 0).astype(np.float32),
    }


PARAMS = nn.unbox(jax.jit(SYSTEM.init)(jax.random.key(0), batch()))
DECODER_ONLY = DecoderOnly(
    DecoderOnlyConfig(
        vocab_size=40, emb_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
        logits_via_embedding=True,
    )
)  # fmt: skip
MBART = MBart(
    MBartConfig(vocab_size=40, emb_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=64)
)


def fresh(llm):
    return jax.jit(lambda: initial_params(llm, jax.random.key(1)))()


CONTINUES = dataclasses.replace(SYSTEM, llm=DECODER_ONLY)
KINDS = {
    't5': (SYSTEM, PARAMS),
    'decoder_only': (
        CONTINUES,
        # Ten times as large as they begin, so that what is answered depends on what is read.
        PARAMS | {'llm': jax.tree.map(lambda x: 10 * x, nn.unbox(fresh(DECODER_ONLY)))},
    ),
    'mbart': (
        dataclasses.replace(SYSTEM, llm=MBART),
        # Likewise; else it writes again what it wrote last, as its head is its embedding.
        PARAMS
        | {
            'llm': jax.tree_util.tree_map_with_path(
                lambda path, x: 8 * x if path[-1].key == 'kernel' else x,
                nn.unbox(fresh(MBART)),
            )
        },
    ),
}
every_kind = pytest.mark.parametrize(('system', 'params'), KINDS.values(), ids=KINDS)
both_kinds = pytest.mark.parametrize(('system', 'params'), [KINDS['t5'], KINDS['decoder_only']], ids=[*KINDS][:2])


def marked(data, *places):
    """Row i has a mark before its token places[i]; None: it has none."""
    tokens = np.pad(data['encoder_input_tokens'], ((0, 0), (0, 1)))
    for row, place in enumerate(places):
        if place is not None:
            tokens[row] = np.insert(tokens[row, :-1], place, MARK)
    return data | {'encoder_input_tokens': tokens}


@functools.partial(jax.jit, static_argnums=0)
def loss_of(system, params, data, rng=None):
    return system.loss(params, data, rng)[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def predicted(system, params, data, decode):
    return system.predict(params, data, decode)


def loss(data, system=SYSTEM, rng=None, params=PARAMS):
    return loss_of(system, params, data, rng)


def answers(data, system=SYSTEM, params=PARAMS, method='greedy'):
    return np.asarray(predicted(system, params, data, DecodeConfig(method, max_decode_length=6)))


def row(data, i):
    return {name: array[i : i + 1] for name, array in data.items()}


@every_kind
def test_padding_of_every_kind_changes_nothing(system, params):
    data, wide = (marked(batch(**sizes), None, 1, 3) for sizes in ({}, dict(samples=20_000, inputs=9, targets=7)))
    noise = np.random.default_rng(9).integers(-9000, 9000, wide['speech_samples'].shape)
    padding = np.arange(20_000) >= wide['speech_lengths'][:, None]
    wide['speech_samples'] = np.where(padding, noise, wide['speech_samples']).astype(np.int16)
    np.testing.assert_allclose(loss(wide, system, params=params), loss(data, system, params=params), rtol=1e-5)
    np.testing.assert_array_equal(answers(wide, system, params), answers(data, system, params))


@pytest.mark.parametrize(('kind', 'method'), [('t5', 'greedy'), ('decoder_only', 'beam'), ('mbart', 'beam')])
def test_one_alone_as_in_a_batch(kind, method):
    data = marked(batch(), None, 1, 3)
    if kind == 'mbart':
        data['first_tokens'] = np.array([7, 8, 9], np.int32)
    together = answers(data, *KINDS[kind], method)
    assert kind == 't5' or len({tuple(tokens) for tokens in together}) == 3
    for i, length in enumerate(data['speech_lengths']):
        alone = row(data, i)
        alone['speech_samples'] = alone['speech_samples'][:, :length]
        np.testing.assert_array_equal(answers(alone, *KINDS[kind], method)[0], together[i])


@both_kinds
def test_rows_of_padding_do_not_count(system, params):
    data = marked(batch(), None, 1, 3)
    padded = {name: np.pad(array, [(0, 2)] + [(0, 0)] * (array.ndim - 1)) for name, array in data.items()}
    np.testing.assert_allclose(loss(padded, system, params=params), loss(data, system, params=params), rtol=1e-5)
    np.testing.assert_array_equal(answers(padded, system, params)[:3], answers(data, system, params))


@every_kind
def test_text_passes_as_through_the_language_model_alone(system, params):
    plain = batch(lengths=(0, 0, 0), samples=0)
    text = marked(plain, None, None, None)  # no mark, but the width of those that have some
    alone = TextToText(system.llm)
    assert loss(text, system, params=params) == loss_of(alone, {'llm': params['llm']}, text)
    written = answers(text, system, params)
    np.testing.assert_array_equal(written, answers(text, alone, params))
    for of in (system, alone):  # of speech that is not there a mark says nothing
        np.testing.assert_array_equal(answers(marked(plain, 0, 2, 3), of, params), written)


@both_kinds
def test_text_among_speech_is_answered_as_alone(system, params):
    mixed = marked(batch(lengths=(16_000, 0, 4_321)), None, 2, None)
    text = row(mixed, 1) | {'speech_samples': np.zeros((1, 0), np.int16)}
    np.testing.assert_array_equal(answers(mixed, system, params)[1], answers(text, system, params)[0])


@both_kinds
def test_speech_stands_at_the_mark(system, params):
    """In front, in the middle and behind, and in no row a gap."""
    data = marked(batch(lengths=(16_000, 9_000, 0, 4_321)), None, 1, 1, 4)
    prompt, mask, parts = jax.jit(lambda params, data: system._prompt(params, data, None))(params, data)
    embedding = np.asarray(params['llm']['token_embedder']['embedding'])
    for i, place in enumerate((0, 1, 0, 4)):
        tokens = [token for token in data['encoder_input_tokens'][i] if token > 0]
        speech = np.asarray(parts['speech'][i, : parts['speech_lengths'][i]])
        expected = np.concatenate([embedding[tokens[:place]], speech, embedding[tokens[place:]]])
        assert len(speech) > 1 or i == 2
        np.testing.assert_array_equal(prompt[i, : len(expected)], expected)
        np.testing.assert_array_equal(mask[i], np.arange(mask.shape[1]) < len(expected))


@both_kinds
def test_speech_is_heard_and_its_place_matters(system, params):
    data = marked(batch(), None, None, None)
    other = data | {'speech_samples': data['speech_samples'][::-1]}
    here, there, front, behind = (
        loss(case, system, params=params)
        for case in (data, other, marked(batch(), 0, 0, 0), marked(batch(), 3, 3, 3))
    )  # fmt: skip
    assert abs(here - there) > 1e-4
    assert abs(front - here) < 1e-6 and abs(behind - here) > 1e-4


@every_kind
def test_the_adapter_learns(system, params):
    def of_adapter(adapter):
        return system.loss(params | {'adapter': adapter}, marked(batch(), None, 1, 3), None)[0]

    gradient = jax.tree.leaves(jax.jit(jax.grad(of_adapter))(params['adapter']))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-9 for leaf in gradient)


def test_a_decoder_only_model_answers_nothing_where_nothing_is_heard():
    data = marked(batch(), None, None, None)
    silent = data | {'speech_samples': np.where([[True], [False], [False]], np.int16(-3), data['speech_samples'])}
    heard = answers(data, *KINDS['decoder_only'])
    np.testing.assert_array_equal(answers(silent, *KINDS['decoder_only']), [[1, 0, 0, 0, 0, 0], *heard[1:]])


def test_augmentation_only_with_a_key():
    data = marked(batch(), None, None, None)
    assert loss(data) == loss(data)
    assert loss(data, rng=jax.random.key(0)) != loss(data, rng=jax.random.key(1))


def test_metrics():
    data = batch()
    value, metrics = jax.jit(SYSTEM.loss)(PARAMS, data, None)
    assert metrics['loss'][1] == data['decoder_loss_weights'].sum()
    np.testing.assert_allclose(metrics['loss'][0] / metrics['loss'][1], value, rtol=1e-6)
    assert -1 <= metrics['speech_text_cosine'][0] / metrics['speech_text_cosine'][1] <= 1


def test_ctc_leaves_out_what_cannot_be_spelt():
    system = EncoderCtc(SPEECH)
    data = batch() | {'decoder_target_tokens': np.array([[3, 4, 0], [3, 0, 0], [5, 5, 5]], np.int32)}
    data['speech_lengths'] = np.array([16_000, 9_000, 1_500], np.int32)  # the last has three frames, for five
    value, metrics = jax.jit(system.loss)({'speech_encoder': PARAMS['speech_encoder']}, data, None)
    assert metrics['too_many_labels'] == (1, 3) and metrics['loss'][1] == 3
    first_two = {name: array[:2] for name, array in data.items()}
    np.testing.assert_allclose(
        value, jax.jit(system.loss)({'speech_encoder': PARAMS['speech_encoder']}, first_two, None)[0], rtol=1e-5
    )


@pytest.mark.parametrize(
    'model, sizes',
    [
        # (arXiv 2310.00230): 156M trained, 1%; USM 2B; mT5-XXL has 12.9B.
        ('slm_xxl', {'speech_encoder': (2.0e9, 0.1), 'adapter': (156e6, 0.02), 'llm': (12.9e9, 0.01)}),
        ('slm_tiny', {'speech_encoder': (10e6, 1), 'adapter': (1e6, 0.1), 'llm': (10e6, 1)}),
    ],
)
def test_sizes(model, sizes):
    from slm_jax.inference.model import configured_system
    from slm_jax.inference.traces import abstract_params

    configuration.parse_gin([f'models/{model}.gin'])
    params = abstract_params(configured_system())
    for part, (expected, tolerance) in sizes.items():
        count = sum(leaf.size for leaf in jax.tree.leaves(params[part]))
        assert abs(count / expected - 1) <= tolerance, (part, count)


def test_label_tokens_let_the_llm_read_what_ctc_writes():
    tokens = (22, -1, *range(3, 21))
    adapter = dataclasses.replace(ADAPTER.config, reduction='ctc_blank', reduction_factor=1, output_scale=1e-4)
    system = dataclasses.replace(SYSTEM, adapter=SlmAdapter(adapter), label_tokens=tokens)
    data = row(batch(), 0)
    params = nn.unbox(jax.jit(system.init)(jax.random.key(0), data))
    head = params['speech_encoder']['ctc']['Dense_0']
    head['kernel'] *= 1e3  # so sure of itself that a slot is one label
    head['bias'] = jnp.zeros(20).at[1].set(-1e6)
    heard = jax.jit(SPEECH.apply)({'params': params['speech_encoder']}, data['speech_samples'], data['speech_lengths'])
    labels = [int(label) for label in jnp.argmax(heard[2][0], axis=-1)]
    written = [tokens[label] for label, before in zip(labels, [-1, *labels], strict=False) if label not in (0, before)]
    instruction = [int(token) for token in data['encoder_input_tokens'][0] if token]
    text = data | {'speech_samples': np.zeros((1, 0), np.int16), 'speech_lengths': np.zeros(1, np.int32)}
    text['encoder_input_tokens'] = np.array([[22, *written, *instruction]], np.int32)
    assert len(set(written)) > 3
    np.testing.assert_allclose(loss_of(system, params, data), loss_of(system, params, text), rtol=1e-3)


def test_decoder_noise_is_for_training_only_and_changes_what_is_read():
    text = batch(lengths=(0, 0, 0), samples=0, targets=12)
    text['decoder_input_tokens'][:] = np.arange(12)  # the first is the 0 that starts, and stays
    params, key = {'llm': PARAMS['llm']}, jax.random.key(0)

    def loss_with(noise, rng):
        return loss_of(TextToText(LLM, decoder_noise=noise), params, text, rng)

    assert loss_with(0.5, None) == loss_with(0.0, None) == loss_with(0.0, key)
    assert abs(loss_with(0.5, key) - loss_with(0.0, key)) > 1e-4
    assert loss_with(0.5, key) == loss_with(0.5, key)


def test_a_mimetic_t5_begins_by_copying():
    config = T5Config(
        vocab_size=64, emb_dim=192, num_heads=8, num_encoder_layers=2, num_decoder_layers=2, head_dim=24, mlp_dim=64,
        logits_via_embedding=True, mimetic_attention=True,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(3, 11, (4, 60))  # of eight letters: one alone says little
    before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))

    def found(mimetic):
        """How often the cross-attention looks where the letters stand that were written last."""
        llm = T5(dataclasses.replace(config, mimetic_attention=mimetic))
        params = nn.unbox(jax.jit(TextToText(llm).init)(jax.random.key(0), {}))
        seen = functools.partial(llm.apply, capture_intermediates=lambda module, _: module.name in ('query', 'key'))
        _, state = jax.jit(seen)({'params': params['llm']}, tokens, before, tokens)
        attention = state['intermediates']['decoder']['layers_0']['encoder_decoder_attention']
        query, key = (attention[name]['__call__'][0][:, 4:] for name in ('query', 'key'))
        places = jnp.argmax(jnp.einsum('bqhd,bkhd->bqk', query[:, 1:], key[:, :-1]), axis=-1)
        return jnp.mean(places == jnp.arange(places.shape[1]))

    assert found(mimetic=True) > 0.5 and found(mimetic=False) < 0.1
    for change in ({'scan_layers': True}, {'num_heads': 7}):
        with pytest.raises(ValueError, match='mimetic_attention is for scan_layers = False and 8 heads'):
            dataclasses.replace(config, **change)


def test_ctc_takes_part_where_something_is_transcribed():
    """Between a CTC head that is sure and a language model that knows nothing, and only in the rows that ask for it."""
    labels = (0, 0, 1, *(2 + token % 18 for token in range(37)))  # CTC never writes 1
    system, data, params = dataclasses.replace(SYSTEM, token_labels=labels), batch(), dict(PARAMS)
    head = params['speech_encoder']['ctc']['Dense_0']
    sure = {'Dense_0': {'kernel': head['kernel'] * 1e3, 'bias': head['bias'].at[1].set(-1e6)}}
    params['speech_encoder'] = params['speech_encoder'] | {'ctc': sure}

    def written(system, data, weight):
        decode = DecodeConfig(max_decode_length=24, ctc_weight=weight)
        return np.asarray(predicted(system, params, data, decode))

    alone, both = written(system, data, 0.0), written(system, data, 0.99)
    spoken = predicted(EncoderCtc(SPEECH), params, data, DecodeConfig())
    for tokens, heard in zip(both, spoken, strict=True):
        heard = [int(label) for label in heard if label][: len(tokens)]
        assert heard and [labels[token] for token in tokens if token > 1] == heard
    some = written(system, data | {'transcribed': np.array([True, False, True])}, 0.99)
    np.testing.assert_array_equal(some, np.where(np.array([[True], [False], [True]]), both, alone))
    with pytest.raises(ValueError, match='SLM.token_labels'):
        written(SYSTEM, data, 0.5)
    with pytest.raises(ValueError, match='of another tokenizer'):
        written(dataclasses.replace(SYSTEM, token_labels=(0,) * 1000), data, 0.5)


def test_where_nothing_is_heard_the_answer_is_empty():
    """Whatever is asked, and only in rows that have a recording; beside them nothing changes."""
    data, empty = marked(batch(lengths=(16_000, 9_000, 0)), None, None, None), [1, 0, 0, 0, 0, 0]
    heard = answers(data)
    assert not any((row == empty).all() for row in heard)
    silent = data | {'speech_samples': np.where([[True], [False], [False]], np.int16(-3), data['speech_samples'])}
    np.testing.assert_array_equal(answers(silent), [empty, *heard[1:]])

    goes_by_ctc = dataclasses.replace(SYSTEM, token_labels=(0,) * 40)

    def answers_where_ctc_gives_blank(share, method='greedy', system=goes_by_ctc):
        bias = jnp.zeros(20).at[0].set(np.log(19 * share / (1 - share)))
        head = {'Dense_0': {'kernel': jnp.zeros((32, 20)), 'bias': bias}}
        params = PARAMS | {'speech_encoder': PARAMS['speech_encoder'] | {'ctc': head}}
        weight = 0.5 if system is goes_by_ctc else 0.0  # in none of the rows, as they ask for no transcript
        decode = DecodeConfig(method, max_decode_length=6, ctc_weight=weight)
        return np.asarray(predicted(system, params, data | {'transcribed': np.zeros(3, bool)}, decode))

    np.testing.assert_array_equal(answers_where_ctc_gives_blank(0.4), heard)
    np.testing.assert_array_equal(answers_where_ctc_gives_blank(0.6), [empty, *heard[1:]])  # a second, and less
    np.testing.assert_array_equal(answers_where_ctc_gives_blank(0.98), [empty, empty, heard[2]])
    np.testing.assert_array_equal(answers_where_ctc_gives_blank(0.98, system=SYSTEM), heard)
    assert answers_where_ctc_gives_blank(0.98, 'beam')[:2].tolist() == [empty, empty]


@pytest.mark.parametrize('method', ['greedy', 'beam'])
def test_what_a_limit_cut_has_no_end(method):
    """A model that never ends by itself, rows of 3 and 4 tokens."""
    data, params = batch(), PARAMS | {'llm': dict(PARAMS['llm'])}
    decoder = PARAMS['llm']['decoder']
    params['llm']['decoder'] = decoder | {'logits_dense': {'kernel': decoder['logits_dense']['kernel'].at[:, 1].set(0)}}

    def lengths(**limits):
        tokens = np.asarray(predicted(TextToText(LLM), params, data, DecodeConfig(method, **limits)))
        return [list(row).index(1) if 1 in row else -np.count_nonzero(row) for row in tokens]

    assert lengths(max_decode_length=6) == [-6, -6, -6]
    assert lengths(max_decode_length=12, max_length_ratio=2.0) == [-5, -7, -5]


@both_kinds
def test_attention_to_the_speech_whatever_stands_before_it(system, params):
    data = marked(batch(), 2, 0, None)
    weights, spans, lengths = jax.jit(system.attention)(params, data)
    assert weights.shape[1:] == (3, 4, spans.shape[2]) and lengths.tolist() == [7, 4, 2]
    one = dataclasses.replace(system, alignment_heads=[[0, 1]])  # as gin gives it
    assert hash(one) and jax.eval_shape(one.attention, params, data)[0].shape[0] == 1

    @jax.jit
    def everywhere(params, data):
        given = *system._prompt(params, data, None)[:2], data['decoder_input_tokens'], data['decoder_target_tokens']
        return system.llm.apply({'params': params['llm']}, *given, method='attention', mutable=['intermediates'])[0]

    whole = everywhere(params, data)
    for row, (before, length) in enumerate(zip((2, 0, 0), lengths)):
        expected = whole[:, row, :, before : before + length]
        np.testing.assert_allclose(weights[:, row, :, :length], expected, rtol=1e-5, atol=1e-7)
        ends = 0.16 * np.arange(1, length + 1)
        seconds = data['speech_lengths'][row] / 16_000
        np.testing.assert_allclose(spans[0, row, :length], ends - 0.16, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(spans[1, row, :length], np.minimum(ends, np.ceil(25 * seconds) / 25), atol=0.041)


def test_answers_begin_with_the_token_that_is_wanted():
    (system, params), data = KINDS['mbart'], batch()
    free = answers(data, system, params)
    for method in ('greedy', 'beam'):
        forced = answers(data | {'first_tokens': np.array([7, 0, 9], np.int32)}, system, params, method)
        assert forced[:, 0].tolist()[::2] == [7, 9]
        if method == 'greedy':
            np.testing.assert_array_equal(forced[1], free[1])
    # It counts for nothing: the rest is what is likeliest after it.
    logits = jax.jit(system.llm.apply)({'params': params['llm']}, data['encoder_input_tokens'], np.array([[0, 7]] * 3))
    seven = data | {'first_tokens': np.full(3, 7, np.int32)}
    text = predicted(TextToText(system.llm), {'llm': params['llm']}, seven, DecodeConfig(max_decode_length=2))
    np.testing.assert_array_equal(text[:, 1], np.argmax(np.asarray(logits)[:, 1, 1:], axis=-1) + 1)
