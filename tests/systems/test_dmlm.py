"""DMLM: a table that has grown, its loss in rows of one text and of several, and what may be written."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax import decoding, foundations, llms
from slm_jax.data.modalities import Modalities
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig
from slm_jax.llms.grown import Grown
from slm_jax.systems.dmlm import DMLM, LOSSES

CONFIG = DecoderOnlyConfig(vocab_size=40, emb_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
MODALITIES = Modalities(llm=CONFIG, speech=12, image=6, image_size=(2, 2), languages=('en', 'de'))
LENGTH = 12


def system(config=CONFIG, modalities=MODALITIES, tied=None, **fields):
    return DMLM(Grown(config, modalities.rows, tied), modalities, **fields)


@functools.cache
def parameters():
    return nn.unbox(jax.jit(lambda: system().init(jax.random.key(0), {}))())


def example(*stretches, lang='en', learnt=False):
    """(inputs, targets) of stretches, the last of which is written."""
    ids = [(name, [MODALITIES.ranges[name][0] + unit for unit in units]) for name, units in stretches]
    return np.array(MODALITIES.prompt(ids[:-1], ids[-1][0], lang, learnt)), np.array([*ids[-1][1], 1])


EXAMPLES = (
    example(('speech', [3, 7, 1, 2, 9, 0]), ('text', [5, 8])),
    example(('text', [9, 30]), ('speech', [4, 4, 1, 7, 8]), learnt=True),
    example(('image', [0, 5, 2, 1]), ('text', [4, 2, 11]), lang='de', learnt=True),
    example(('text', [20])),
)


def unpacked(examples, rows=None):
    """The batch contract: a row for each, and empty ones up to `rows`."""
    rows = rows or len(examples)
    batch = {
        'encoder_input_tokens': np.zeros((rows, LENGTH), np.int32),
        'decoder_target_tokens': np.zeros((rows, LENGTH), np.int32),
    }
    for row, (inputs, targets) in enumerate(examples):
        batch['encoder_input_tokens'][row, : len(inputs)] = inputs
        batch['decoder_target_tokens'][row, : len(targets)] = targets
    return batch | {'decoder_loss_weights': (batch['decoder_target_tokens'] > 0).astype(np.float32)}


@pytest.mark.parametrize('tied', [True, False])
def test_logits_of_texts_keep_their_bits(tied):
    config = dataclasses.replace(CONFIG, logits_via_embedding=tied)
    before, after = DecoderOnly(config), Grown(config, MODALITIES.rows)
    params = nn.unbox(jax.jit(lambda: llms.initial_params(after, jax.random.key(1)))())
    text = {name: leaf for name, leaf in params.items() if not name.startswith('grown')}
    assert foundations.structure(text) == foundations.structure(
        nn.unbox(jax.eval_shape(lambda: llms.initial_params(before, jax.random.key(0))))
    )
    assert ('grown_logits' in params) == (not tied)
    tokens = np.random.default_rng(0).integers(2, 40, (3, 9))
    targets = np.pad(tokens[:, ::-1], ((0, 0), (1, 0)))[:, :7]

    def logits(llm, params):
        return jax.jit(lambda params: llm.apply({'params': params}, tokens, targets))(params)

    old, new = logits(before, text), logits(after, params)
    assert new.shape[-1] == 40 + 64  # 12 units, 6 tokens, 5 control tokens, and up to a multiple
    np.testing.assert_array_equal(new[..., :40], old)
    written = []
    for llm, own in ((before, text), (after, params)):

        @jax.jit
        def first(params, llm=llm):
            prompt = llm.apply({'params': params}, tokens, method='embed')
            step, cache = llms.cached_step(llm, params, prompt, tokens > 0, 4)
            return step(jnp.zeros((3, 1), jnp.int32), cache)[0]

        written.append(np.array(first(own))[:, :40])
    shift = written[1][:, 1:] - written[0][:, 1:]  # of the sum over what may be written
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-5)


@functools.cache
def by_example():
    """Of each example and modality the losses of its tokens, from the logits of each example alone."""
    llm, found = system().llm, []
    apply = jax.jit(functools.partial(llm.apply, method='logits'))
    embed = jax.jit(functools.partial(llm.apply, method='embed'))
    for inputs, targets in EXAMPLES:
        tokens = np.concatenate([np.abs(inputs), targets])
        learnt = np.concatenate([inputs < 0, targets > 0])[1:]
        params, padded = {'params': parameters()['llm']}, np.pad(tokens, (0, 2 * LENGTH - len(tokens)))[None]
        before = np.concatenate([[[0]], padded[:, 1:-1]], axis=1)
        logits = apply(params, embed(params, padded[:, :1]), np.ones((1, 1), bool), before)[0, : len(tokens) - 1]
        losses = -np.take_along_axis(np.array(jax.nn.log_softmax(logits)), tokens[1:, None], 1)[:, 0]
        stretch = np.searchsorted(np.flatnonzero((tokens >= 58) & (tokens < 61)), np.arange(len(losses)), 'right')
        kinds = tokens[(tokens >= 58) & (tokens < 61)][stretch - 1] - MODALITIES.opener('text')
        found.append([losses[learnt & (kinds == kind)] for kind in range(3)])
    return found


def by_hand(objective, weights):
    """The loss, from the logits of each example alone."""
    terms = [(w, t) for example in by_example() for w, t in zip(weights, example, strict=True) if len(t)]
    if objective == 'length_normalised':
        return sum(w * t.mean() for w, t in terms) / sum(w for w, _ in terms)
    if objective == 'token_mean':
        return np.concatenate([t for _, t in terms]).mean()
    return sum(w * t.sum() for w, t in terms) / sum(w * len(t) for w, t in terms)


@pytest.mark.parametrize('objective', LOSSES)
def test_loss_is_the_mean_that_its_name_says(objective):
    weights = {'text': 1.0, 'speech': 0.5, 'image': 2.0}
    model = system(objective=objective, weights=weights)
    loss, metrics = jax.jit(lambda params: model.loss(params, unpacked(EXAMPLES, rows=6), None))(parameters())
    np.testing.assert_allclose(loss, by_hand(objective, [*weights.values()]), rtol=1e-5)
    assert {name: int(weight) for name, (_, weight) in metrics.items() if name.endswith('accuracy')} == {
        # Of inputs that are learnt, the control token that ends them too.
        'text_accuracy': 3 + 3 + 4 + 2, 'speech_accuracy': 6, 'image_accuracy': 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'weights': {'text': 1.0, 'speech': 1.0}},
            'DMLM.weights has no weight for image, of which',
        ),
        ({'weights': dict.fromkeys(['text', 'speech', 'image', 'video'], 1.0)}, "a weight for 'video'; modalities are"),
        ({'objective': 'mean'}, "DMLM.objective is 'mean'; it must be one of length_normalised, token_mean"),
        ({'modalities': dataclasses.replace(MODALITIES, speech=90)}, 'has grown by 128; DMLM.llm has 40 and 64'),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    llm = system().llm
    with pytest.raises(ValueError, match=message):
        DMLM(llm, **{'modalities': MODALITIES} | fields)


@pytest.mark.parametrize('method', ['greedy', 'beam', 'sample'])
def test_what_is_written_is_of_the_modality_that_is_asked_for(method):
    """And each row as it would be alone."""
    how = decoding.DecodeConfig(method, 7, beam_size=3, top_k=5, temperature=2.0)
    model = system(sampling=decoding.DecodeConfig('sample', 4, top_p=0.9))  # less than an image has
    asked = [EXAMPLES[i] for i in (0, 1, 2, 3)] + [example(('text', [3]), ('image', [])), ([], [])]
    batch = unpacked([(inputs, []) for inputs, _ in asked])
    predict = jax.jit(lambda params, batch: model.predict(params, batch, how))
    found = np.array(predict(parameters(), batch))
    assert found.shape == (6, 7)
    for row, modality in enumerate(('text', 'speech', 'text', 'text', 'image')):
        start, stop = MODALITIES.ranges[modality]
        written = found[row][found[row] > 0]
        assert len(written) and np.all((written == 1) | ((written >= start) & (written < stop)))
    assert not found[1, 4:].any()
    assert (found[4] > 1).tolist() == 4 * [True] + 3 * [False] and found[4, 4] == 1  # 2 x 2 tokens, and the end
    np.testing.assert_array_equal(found[5], [1] + 6 * [0])  # nothing was asked
    if method != 'sample':
        alone = {name: array[2:3] for name, array in batch.items()}
        np.testing.assert_array_equal(predict(parameters(), alone)[0], found[2])


_ON_DEVICES = """
import json, sys
import jax, numpy as np
import test_dmlm as test
from slm_jax.training import partitioning
batch = test.unpacked(4 * test.EXAMPLES)
models = {objective: test.system(objective=objective) for objective in test.LOSSES}
found = []
for sizes in json.loads(sys.argv[1]):
    partitioner = partitioning.Partitioner(*sizes)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), ('data', 'fsdp', 'model'))
    given = partitioning.shard_batch(batch, mesh)
    params = jax.device_put(test.parameters(), partitioning.replicated(mesh))
    with partitioner.tracing(mesh):
        losses = jax.jit(lambda *given: {name: model.loss(*given, None)[0] for name, model in models.items()})
        found.append({name: float(loss) for name, loss in losses(params, given).items()})
print(json.dumps(found))
"""


def test_loss_is_the_same_on_any_mesh():
    meshes = [[1, 1, 1], [2, 1, 1], [4, 1, 1], [8, 1, 1], [2, 2, 2]]
    flags = '--xla_force_host_platform_device_count=8'  # alone: compiled as for a training, which adds up more exactly
    ran = subprocess.run(
        [sys.executable, '-c', _ON_DEVICES, json.dumps(meshes)],
        env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    for objective in LOSSES:
        losses = [each[objective] for each in found]
        np.testing.assert_allclose(losses, losses[0], rtol=0, atol=1e-6, err_msg=objective)
        np.testing.assert_allclose(losses[0], by_hand(objective, [1.0, 1.0, 1.0]), rtol=1e-5)


class Ears(nn.Module):
    """A frame of two numbers for each four samples."""

    max_seconds = 3.0

    @nn.compact
    def __call__(self, samples, lengths, layer=None):
        scale = self.param('scale', nn.initializers.ones, ())
        return scale * samples.reshape(len(samples), -1, 4)[..., :2], lengths // 4

    def inner(self, samples, lengths, layer):
        assert layer == 2
        return self(samples, lengths)


def test_a_recording_is_heard_as_the_units_of_the_codebook():
    model = system(speech_encoder=Ears(), layer=2)
    assert model.max_seconds == 3.0
    heard = {'speech_samples': np.zeros((1, 16), np.int16), 'speech_lengths': np.array([16])}
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), heard)))
    assert shapes['codebook']['centroids'].shape == (12, 2) and shapes['speech_encoder']['scale'].shape == ()
    centroids = np.array([[100 * unit, -unit] for unit in range(12)], np.float32)
    params = parameters() | {'codebook': {'centroids': centroids}, 'speech_encoder': {'scale': np.float32(1)}}
    samples = np.zeros((3, 40), np.int16)
    for row, units in enumerate(([3, 3, 7, 7, 7, 1], [], [0, 11, 0])):
        samples[row, : 4 * len(units)] = np.repeat(100 * np.array(units, int), 4) + 20
    vocabulary = None  # of texts, and none is read
    asked = model.prompt.tokens(vocabulary, 'Translate this speech to German.')
    assert asked == (59, -1, 58, 62)
    batch = unpacked([(np.array(asked), []), EXAMPLES[1], (np.array(asked), [])])
    batch |= {'speech_samples': samples, 'speech_lengths': np.array([24, 0, 12])}
    said = [example(('speech', units), ('text', []), lang='de')[0] for units in ([3, 7, 1], [0, 11, 0])]
    expected = unpacked([(said[0], []), EXAMPLES[1], (said[1], [])])
    decode = decoding.DecodeConfig('greedy', 5)
    found = jax.jit(lambda params, batch: model.predict(params, batch, decode))(params, batch)
    read = jax.jit(lambda params, batch: system().predict(params, batch, decode))
    np.testing.assert_array_equal(found, read(parameters(), expected))
    with pytest.raises(ValueError, match='this model reads none. It transcribes .* or translates into English, German'):
        model.prompt.tokens(vocabulary, 'Who is it?')
    assert model.prompt.tokens(vocabulary, 'Transcribe the speech.') == (59, -1, 58, 61)
    assert model.prompt.tokens(vocabulary, 'Say in German what the English speaker says.') == (59, -1, 58, 62)
    for wording in ('Translate this English speech to Italian.', 'Transcribe the Italian speech.'):
        with pytest.raises(ValueError, match="the language 'it' has no control token"):
            model.prompt.tokens(vocabulary, wording)


@pytest.mark.parametrize('tied', [True, False])
def test_new_rows_are_like_those_of_a_foundation(tied, tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=500, logits_via_embedding=tied)
    known = dataclasses.replace(MODALITIES, llm=config, speech=3000)
    rng = np.random.default_rng(0)
    table = (3.0 + rng.normal(size=(500, 16)) @ rng.normal(size=(16, 16))).astype(np.float32)
    head = (rng.normal(size=(16, 16)) @ rng.normal(size=(16, 500)) - 1.0).astype(np.float32)
    params = {'token_embedder': {'embedding': table}, 'decoder': {'logits_dense': {'kernel': head}}}
    foundations.save(tmp_path / 'llm', params, {'name': 'llm', 'kind': 'llm'})
    model = system(config, known, rows_like=str(tmp_path / 'llm'))
    pick = lambda: {n: leaf for n, leaf in nn.unbox(model.init(jax.random.key(0), {}))['llm'].items() if 'grown' in n}
    found = jax.jit(pick)()
    rows = {'grown': (np.array(found['grown']['embedding']), table)}
    if not tied:
        rows['grown_logits'] = np.array(found['grown_logits']['kernel']).T, head.T
    assert rows.keys() == found.keys()
    for new, old in rows.values():
        assert new.shape == (known.rows, 16)
        deviation = old.std(axis=0)
        np.testing.assert_allclose(new.mean(axis=0) / deviation, old.mean(axis=0) / deviation, atol=0.1)
        scale = np.outer(deviation, deviation)
        np.testing.assert_allclose(np.cov(new.T) / scale, np.cov(old.T) / scale, atol=0.12)
    model.check_fresh(['llm/grown/embedding', 'llm/grown_logits/kernel'])
    foundations.save(tmp_path / 'other', {'token_embedder': {'embedding': table[:, :8]}}, {'name': 'o', 'kind': 'llm'})
    missing = ['llm/grown/embedding' if tied else 'llm/grown_logits/kernel']
    for name, paths, said in (
        ('nowhere', missing, "DMLM.rows_like: No foundation 'nowhere'"),
        ('other', ['llm/grown/embedding'], 'width of its token_embedder/embedding is 8, and new rows have 16. Give'),
        *([] if tied else [('other', missing, 'width of its decoder/logits_dense/kernel is none')]),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(model, rows_like=str(tmp_path / name) if name == 'other' else name).check_fresh(paths)
    dataclasses.replace(model, rows_like='nowhere').check_fresh(['llm/decoder/x'])  # another model gives these rows
    # Shapes are known without it.
    shapes = jax.eval_shape(lambda: system(config, known, rows_like='nowhere').init(jax.random.key(0), {}))
    assert nn.unbox(shapes)['llm']['grown']['embedding'].shape == (known.rows, 16)
