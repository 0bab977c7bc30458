"""Distillation of an SLM from its own language model: against numpy, invariances, and where the gradient goes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.llms import initial_params
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig
from slm_jax.llms.t5 import T5, T5Config
from slm_jax.systems.slm import SLM
from slm_jax.systems.text_to_text import target_logits

VOCABULARY, WIDTH = 40, 32
LLMS = {
    't5': T5(
        T5Config(
            vocab_size=VOCABULARY, emb_dim=WIDTH, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=16,
            mlp_dim=64,
        )
    ),
    'decoder_only': DecoderOnly(
        DecoderOnlyConfig(
            vocab_size=VOCABULARY, emb_dim=WIDTH, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64
        )
    ),
}  # fmt: skip
LLM_PARAMS = {
    name: nn.unbox(jax.jit(functools.partial(initial_params, llm))(jax.random.key(0))) for name, llm in LLMS.items()
}
MARK = [-1]
TRANSCRIPTS = [[5, 6, 7, 8], [9, 4], [11, 12, 13]]
BEFORE = [[20, 21], [], [22]]
BEHIND = [[30, 1], [31, 32, 1], [1]]
ANSWERS = [[14, 15, 1], [16, 1], [17, 18, 1]]


class Spelt(nn.Module):
    """A speech encoder whose frames are the samples themselves."""

    max_seconds = None

    @nn.compact
    def __call__(self, samples, lengths, deterministic=True):
        return samples[..., None].astype(jnp.float32), lengths, None


@dataclasses.dataclass(eq=False)  # a module is hashed with its fields
class Table:
    embeddings: jax.Array


class Reader(nn.Module):
    """An adapter that takes each sample for a token and embeds it as the language model does, plus an `offset`."""

    table: 'Table'

    @nn.compact
    def __call__(self, frames, lengths, ctc_logits=None, deterministic=True, label_embeddings=None):
        offset = self.param('offset', nn.initializers.zeros, (WIDTH,))
        return self.table.embeddings[frames[..., 0].astype(jnp.int32)] + offset, lengths


TABLES = {
    name: Table(llm.apply({'params': LLM_PARAMS[name]}, jnp.arange(VOCABULARY)[None], method='embed')[0])
    for name, llm in LLMS.items()
}


def system(kind, **fields):
    return SLM(Spelt(), Reader(TABLES[kind]), LLMS[kind], **{'objective': 'distil', **fields})


def params(kind, offset=0.0):
    drawn = offset * jax.random.normal(jax.random.key(1), (WIDTH,))
    return {'speech_encoder': {}, 'adapter': {'offset': drawn}, 'llm': LLM_PARAMS[kind]}


def padded(rows, width, fill=0):
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], np.int32)


def batch(wider=0):
    targets = padded(ANSWERS, 3 + wider)
    marked = [[*before, *MARK, *behind] if before else behind for before, behind in zip(BEFORE, BEHIND)]
    taught = [[*before, *text, *behind] for before, text, behind in zip(BEFORE, TRANSCRIPTS, BEHIND)]
    return {
        'speech_samples': padded(TRANSCRIPTS, 4 + wider, fill=3).astype(np.int16),
        'speech_lengths': np.array([len(text) for text in TRANSCRIPTS], np.int32),
        'encoder_input_tokens': padded(marked, 6 + wider),
        'teacher_input_tokens': padded(taught, 9 + 2 * wider),
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': (targets > 0).astype(np.float32),
    }


@functools.partial(jax.jit, static_argnums=0)
def loss(slm, given, data):
    return slm.loss(given, data, None)


@functools.partial(jax.jit, static_argnums=0)
def gradient(slm, given, data):
    return jax.grad(lambda given: slm.loss(given, data, None)[0])(given)


both_kinds = pytest.mark.parametrize('kind', LLMS)


@both_kinds
def test_nothing_to_learn_where_the_adapter_gives_the_transcript(kind):
    assert abs(loss(system(kind), params(kind), batch())[0]) < 1e-6
    for leaf in jax.tree.leaves(gradient(system(kind), params(kind), batch())):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


@both_kinds
def test_the_loss_is_the_divergence_that_numpy_finds(kind):
    """Over the tokens of all answers together, softened, times the temperature's square; the metric of each token."""
    given, data = params(kind, 0.3), batch()

    def log_softmax(logits):
        logits = np.asarray(logits, np.float64) / 2.0
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def said(prompts, row):
        """The logits of a row alone, without any padding."""
        targets = np.array([ANSWERS[row]])
        inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        arguments = prompts[None], np.ones((1, len(prompts)), bool), inputs, targets
        return log_softmax(LLMS[kind].apply({'params': given['llm']}, *arguments, method='logits')[0])

    embeddings = np.asarray(system(kind).adapter.table.embeddings)
    total = 0.0
    for row, (before, text, behind) in enumerate(zip(BEFORE, TRANSCRIPTS, BEHIND)):
        parts = [embeddings[before], embeddings[text], embeddings[behind]] if before else [
            embeddings[text], embeddings[behind]]  # fmt: skip
        taught = said(np.concatenate(parts), row)
        parts[-2] = parts[-2] + np.asarray(given['adapter']['offset'])
        total += (np.exp(taught) * (taught - said(np.concatenate(parts), row))).sum()
    tokens = sum(map(len, ANSWERS))
    value, metrics = loss(system(kind, distil_temperature=2.0), given, data)
    assert value > 1e-4
    np.testing.assert_allclose(value, 4.0 * total / tokens, rtol=1e-4)
    np.testing.assert_allclose(metrics['distil'][0] / metrics['distil'][1], value, rtol=1e-6)
    assert metrics['distil'][1] == tokens
    assert abs(value - loss(system(kind), given, data)[0]) > 1e-3 * value  # another temperature


@both_kinds
def test_the_teacher_gets_no_gradient(kind):
    """The whole tree is differentiated; through the student the language model has one, and the teacher adds none."""

    found = gradient(system(kind), params(kind, 0.3), batch())
    assert np.abs(found['adapter']['offset']).max() > 1e-4

    # With the teacher's logits as constants the gradient is the same.
    def with_constants(p):
        slm, data = system(kind), batch()
        tokens = data['teacher_input_tokens']
        constant = params(kind, 0.3)
        prompt = slm.llm.apply({'params': constant['llm']}, tokens, method='embed')
        taught = target_logits(slm.llm, constant['llm'], prompt, tokens > 0, data, None)
        prompt, mask, _ = slm._prompt(p, data, None)
        said = target_logits(slm.llm, p['llm'], prompt, mask, data, None)
        divergence = jax.nn.softmax(taught) * (jax.nn.log_softmax(taught) - jax.nn.log_softmax(said))
        return jnp.sum(divergence.sum(-1) * data['decoder_loss_weights']) / data['decoder_loss_weights'].sum()

    expected = jax.jit(jax.grad(with_constants))(params(kind, 0.3))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-4), found, expected)


@both_kinds
def test_padding_of_every_kind_changes_nothing(kind):
    given = params(kind, 0.3)
    expected = loss(system(kind), given, batch())[0]
    wide = batch(wider=3)
    np.testing.assert_allclose(loss(system(kind), given, wide)[0], expected, rtol=1e-5)
    rows = {name: np.pad(array, [(0, 2)] + [(0, 0)] * (array.ndim - 1)) for name, array in wide.items()}
    np.testing.assert_allclose(loss(system(kind), given, rows)[0], expected, rtol=1e-5)


def test_several_objectives_by_weight_and_rows_of_text():
    given, data, kind = params('t5', 0.3), batch(), 't5'
    distilled, entropy = loss(system(kind), given, data), loss(system(kind, objective='cross_entropy'), given, data)
    mixed, metrics = loss(system(kind, objective={'cross_entropy': 0.25, 'distil': 2.0}), given, data)
    np.testing.assert_allclose(mixed, 0.25 * entropy[0] + 2.0 * distilled[0], rtol=1e-6)
    assert {'distil', 'loss', 'accuracy'} <= metrics.keys() == distilled[1].keys()
    np.testing.assert_allclose(metrics['loss'][0], entropy[1]['loss'][0], rtol=1e-6)

    # A row that is text has nothing to read twice: the others count alone.
    first_two = {name: array[:2] for name, array in data.items()}
    text = data | {'speech_lengths': data['speech_lengths'] * [1, 1, 0]}
    text['teacher_input_tokens'] = data['teacher_input_tokens'] * np.array([[1], [1], [0]])
    np.testing.assert_allclose(loss(system(kind), given, text)[0], loss(system(kind), given, first_two)[0], rtol=1e-5)
    texts = data | {name: data[name][:, :0] for name in ('speech_samples', 'teacher_input_tokens')}
    assert loss(system(kind), given, texts)[0] == 0.0


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'objective': 'distill'}, "SLM.objective is 'distill'; it must be one of 'cross_entropy', 'distil'"),
        ({'objective': {}}, 'SLM.objective is .*weights above 0'),
        ({'objective': {'distil': 0}}, 'weights above 0'),
        ({'objective': {'distil': '1'}}, 'weights above 0'),
        ({'distil_temperature': 0}, 'SLM.distil_temperature is 0; it must be above 0'),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        system('t5', **fields)


def test_a_batch_without_what_the_teacher_reads():
    data = batch()
    del data['teacher_input_tokens']
    with pytest.raises(ValueError, match=r'SpeechTextLoader\(teacher=True\)'):
        loss(system('t5'), params('t5'), data)
    loss(system('t5', objective='cross_entropy'), params('t5'), data)


def test_an_objective_can_be_hashed_and_replaced():
    one = system('t5', objective={'cross_entropy': 0.5, 'distil': 0.5})
    other = dataclasses.replace(one, distil_temperature=1.0)
    assert hash(one) == hash(other) and one.teacher == 'llm'
    assert dataclasses.replace(one, objective='cross_entropy').teacher is None
