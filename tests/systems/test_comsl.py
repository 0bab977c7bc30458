"""ComSL: its losses against numpy, what padding and neighbours do not change, what it writes, and what it refuses."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_comsl as tiny

from slm_jax import decoding
from slm_jax.foundations import flatten
from slm_jax.llms.mbart import MBartConfig
from slm_jax.systems import cross_modal
from slm_jax.training import flops

LOSSES = ('asr', 'st', 'mt', 'asr_mix', 'st_mix', 'mtp', 'erm')
SHORT = tiny.SPEECH.__class__(num_layers=1, emb_dim=8, num_heads=2, mlp_dim=8, seconds=1.0)


@functools.cache
def made():
    comsl = tiny.system(speech=SHORT)
    return comsl, tiny.params(comsl)


@functools.cache
def compiled():
    comsl = made()[0]
    return jax.jit(lambda params, batch, masked: comsl.terms(params, batch, masked, None))


def terms(batch, width=8):
    found = compiled()(made()[1], batch, tiny.masked(width)[: len(batch['speech_lengths'])])
    return {name: np.array(value) for name, value in found.items()}


def test_masks_are_a_function_of_key_and_row():
    rng = np.random.default_rng(0)
    text = np.array([[9, *rng.integers(2, 40, 30), 1]] * 200, np.int32)
    text[:, 20:] = np.where(np.arange(200)[:, None] % 2, text[:, 20:], 0)
    text[0, 1:] = 0  # a language alone: nothing can be masked
    text[1, 1:] = 0
    text[1, 1] = 5  # a single token: it always is
    mask = functools.partial(jax.jit(cross_modal.mask_tokens, static_argnums=2), rate=0.15)
    masked = np.array(mask(jax.random.key(3), text))
    assert not masked[:, 0].any() and not masked[text <= 1].any() and not masked[0].any()
    assert masked[1:].any(axis=1).all()
    assert 0.14 < masked[2:].sum() / (text[2:, 1:] > 1).sum() < 0.17
    np.testing.assert_array_equal(mask(jax.random.key(3), text), masked)
    wider = np.pad(text[:5], ((0, 0), (0, 7)))
    np.testing.assert_array_equal(mask(jax.random.key(3), wider)[:, : text.shape[1]], masked[:5])
    assert np.any(np.array(mask(jax.random.key(4), text)) != masked)


def test_losses_follow_their_definitions():
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
    targets, weights = rng.integers(0, 5, (2, 3)), np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    log_probs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    probs = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
    hard = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    soft = -(probs * log_probs).sum(-1)
    alpha = np.array([[0.8], [0.0]])
    value, count = cross_modal.matched(logits, teacher, targets, weights, alpha)
    np.testing.assert_allclose(value, np.sum((alpha * soft + (1 - alpha) * hard) * weights), rtol=1e-5)
    assert count == 3
    slope = jax.grad(lambda teacher: cross_modal.matched(logits, teacher, targets, weights, alpha)[0])(teacher)
    assert not np.any(slope)

    one, other = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    valid = np.array([[True, True, False], [True, False, False]])
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (one, other)]
    value, count = cross_modal.unit_distance(one, other, valid)
    np.testing.assert_allclose(value, np.linalg.norm(unit[0] - unit[1], axis=-1)[valid].sum(), rtol=1e-5)
    assert count == 3
    assert not np.any(jax.grad(lambda x: cross_modal.unit_distance(x, one, valid)[0])(one))


def test_neither_padding_nor_neighbours_change_a_loss():
    """With wider texts, noise behind the clips and a row of nothing; and each row by itself, the other two emptied."""
    batch, wide = tiny.batch(), tiny.batch(wider=3)
    behind = np.arange(batch['speech_samples'].shape[1]) >= batch['speech_lengths'][:, None]
    wide['speech_samples'] = np.where(behind, 999, batch['speech_samples']).astype(np.int16)
    wide = {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in wide.items()}
    masked = np.pad(tiny.masked(8), ((0, 1), (0, 3)))
    together, padded = terms(batch), compiled()(made()[1], wide, masked)
    alone = [
        terms(
            {name: array * (np.arange(3) == row).reshape(-1, *[1] * (array.ndim - 1)) for name, array in batch.items()}
        )
        for row in range(3)
    ]
    for name in (*LOSSES, 'tokens'):
        np.testing.assert_allclose(np.array(padded[name]), together[name], rtol=1e-5, err_msg=name)
        summed = sum(each[name] for each in alone) if name != 'tokens' else together[name]
        np.testing.assert_allclose(summed, together[name], rtol=1e-5, err_msg=name)
        assert together[name][1] > 0


def test_texts_alone_are_translated_and_not_heard():
    batch = tiny.batch()
    last = np.array([[0], [0], [1]], np.int32)
    batch['encoder_input_tokens'] = np.where(last, batch['teacher_input_tokens'], batch['encoder_input_tokens'])
    batch['teacher_input_tokens'] *= 1 - last
    batch['speech_lengths'] *= 1 - last[:, 0]
    found = terms(batch)
    np.testing.assert_allclose(found['mt'], terms(tiny.batch())['mt'], rtol=1e-5)
    assert found['asr'][1] == sum(map(len, tiny.TRANSCRIPTS[:2])) and found['st'][1] == 9


def test_a_transcript_alone_teaches_no_translation():
    """A row whose answer is in the language of its speech, as tasks of kind 'asr' give it."""
    batch = tiny.batch()
    batch['decoder_target_tokens'] = batch['teacher_input_tokens'][:, :7]
    batch['decoder_loss_weights'] = (batch['decoder_target_tokens'] > 0).astype(np.float32)
    found = terms(batch)
    assert found['st'].tolist() == found['mt'].tolist() == found['st_mix'].tolist() == [0, 0]
    np.testing.assert_allclose(found['asr'], terms(tiny.batch())['asr'], rtol=1e-6)
    with pytest.raises(ValueError, match=r'ComSlConfig.st is 0.35, and no task of the data has speech and translation'):
        made()[0].check_data(batch)
    made()[0].check_data(tiny.batch())
    tiny.with_config(made()[0], st=0.0, mt=0.0, st_mix=0.0).check_data(batch)
    heard = tiny.batch() | {'speech_lengths': np.zeros(3, np.int32)}
    with pytest.raises(ValueError, match='ComSlConfig.asr is 0.35, and no task of the data has speech and transcript'):
        made()[0].check_data(heard)


def test_a_loss_without_weight_is_not_computed():
    comsl, params = made()
    batch = tiny.batch()

    def taken(**fields):
        system = tiny.with_config(comsl, **fields)
        return flops.count(jax.make_jaxpr(lambda params: system.loss(params, batch, None)[0])(params).jaxpr)

    nothing = dict.fromkeys(LOSSES, 0.0)
    text, heard = taken(**nothing | {'mt': 1.0}), taken(**nothing | {'asr': 1.0})
    assert text < heard < taken(**nothing | {'asr': 1.0, 'st': 1.0, 'ddm_alpha': 0.0}) < taken()
    # Distribution matching adds the pass of text, and the translation's loss shares it.
    matched = taken(**nothing | {'asr': 1.0, 'st': 1.0})
    assert matched == taken(**nothing | {'asr': 1.0, 'st': 1.0, 'mt': 1.0})


def test_a_step_takes_no_more_than_its_passes_need():
    """1.1 times what is counted by hand; widths at which little else is computed."""
    spec = importlib.util.spec_from_file_location(
        'bench_comsl', pathlib.Path(__file__).parents[1] / 'benchmarks' / 'bench_comsl.py'
    )
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    llm = MBartConfig(
        vocab_size=9000, emb_dim=512, num_heads=4, num_encoder_layers=3, num_decoder_layers=3, mlp_dim=2048
    )
    speech = tiny.SPEECH.__class__(num_layers=3, emb_dim=384, num_heads=4, mlp_dim=1536, seconds=4.0)
    taken, passes = bench.factor(tiny.system(llm, speech), 4.0, 24, 20)
    assert 0.95 < taken / (3 * sum(passes.values())) < 1.1


@functools.cache
def write(method='greedy'):
    comsl = made()[0]
    decode = decoding.DecodeConfig(method, max_decode_length=6, beam_size=5)
    return jax.jit(lambda params, batch: comsl.predict(params, batch, decode))


def test_what_is_written_begins_with_the_language_asked_for():
    """Each token is what the decoder, teacher-forced after the code of the language, finds likeliest."""
    comsl, params = made()
    batch = tiny.batch()
    asked = {name: array for name, array in batch.items() if name != 'teacher_input_tokens'}
    found, score = {}, jax.jit(comsl.score_batch)
    for into in (tiny.FRENCH, tiny.ENGLISH):
        asked['first_tokens'] = np.full(3, into, np.int32)
        found[into] = np.array(write()(params, asked))
        targets = np.pad(found[into], ((0, 0), (1, 0)), constant_values=into)
        # The score of what was written, by the same pass that the losses take.
        scored = score(params, asked | {'decoder_target_tokens': targets})
        better = targets.copy()
        better[:, 2] = np.where(better[:, 2] > 2, better[:, 2] - 1, 3)
        assert (scored > score(params, asked | {'decoder_target_tokens': better})).all()
    assert (found[tiny.FRENCH] != found[tiny.ENGLISH]).any()
    beams = np.array(write('beam')(params, asked))
    assert beams.shape == (3, 6)
    del asked['first_tokens']  # in an evaluation of training, the target says it
    np.testing.assert_array_equal(write()(params, asked), found[tiny.ENGLISH])


def test_rows_of_text_and_of_silence():
    """A text is translated among recordings as alone; where nothing is heard, nothing is written."""
    params = made()[1]
    batch = tiny.batch() | {'first_tokens': np.full(3, tiny.ENGLISH, np.int32)}
    del batch['teacher_input_tokens']
    batch['encoder_input_tokens'][1] = [tiny.FRENCH, *tiny.TRANSCRIPTS[1], 0, 0, 0, 0]
    batch['speech_lengths'] = batch['speech_lengths'] * np.array([1, 0, 1], np.int32)
    batch['speech_samples'] = batch['speech_samples'] * np.array([[1], [0], [0]], np.int16)
    found = np.array(write()(params, batch))
    assert found[2].tolist() == [1, 0, 0, 0, 0, 0]
    text = {name: array[1:2] for name, array in batch.items()}
    text['speech_samples'] = text['speech_samples'][:, :0]
    np.testing.assert_array_equal(write()(params, text)[0], found[1])


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match='ComSlConfig.asr is -1; it must be at least 0, and finite'):
        tiny.system(asr=-1)
    for weight in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match=f'ComSlConfig.mtp is {weight}; it must be at least 0, and finite'):
            tiny.system(mtp=weight)
    with pytest.raises(ValueError, match=r'ComSlConfig: the weights of all losses \(asr, st, .*\) are 0'):
        tiny.system(**dict.fromkeys(LOSSES, 0.0))
    with pytest.raises(ValueError, match=r'ComSlConfig.ddm_alpha is 1.5; it must be in \[0, 1\]'):
        tiny.system(ddm_alpha=1.5)
    with pytest.raises(ValueError, match='ComSlConfig.erm_layer is 3; the encoder of the text model has 2 layers'):
        tiny.system(erm_layer=3)
    with pytest.raises(ValueError, match='ComSlConfig.mask_token is 41 and the text model has 41 tokens'):
        tiny.system(mask_token=41)
    batch = tiny.batch()
    del batch['teacher_input_tokens']
    with pytest.raises(ValueError, match=r'ComSL needs the transcripts, .*SpeechTextLoader\(teacher=True\)'):
        made()[0].check_data(batch)


def test_the_loss_is_the_same_on_eight_devices():
    """Divided over data, fsdp and model; rows that fill the batch up do not change the masks."""
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    code = (
        'import functools, jax, numpy as np, tiny_comsl as tiny\n'
        'from slm_jax.training import partitioning, setup\n'
        'comsl = tiny.system(tiny.LLM, tiny.SPEECH)\n'
        'params, batch = tiny.params(comsl), tiny.batch()\n'
        'for mesh in ({"data": 1}, {"data": 2, "fsdp": 2, "model": 2}):\n'
        '    partitioner = partitioning.Partitioner(**mesh)\n'
        '    devices = partitioner.mesh(jax.devices()[: 8 if len(mesh) > 1 else 1])\n'
        '    layout = setup.lay_out(comsl, (".*",), partitioner, devices)\n'
        '    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), params, layout.trainable)\n'
        '    rows = partitioning.host_rows(devices, 3)\n'
        '    full = {k: np.concatenate([v, np.zeros_like(v[:1])])[np.minimum(rows, 3)] for k, v in batch.items()}\n'
        '    given = partitioning.shard_batch(full, devices)\n'
        '    with partitioner.tracing(devices):\n'
        '        loss = jax.jit(lambda p, b: comsl.loss(p, b, jax.random.key(5))[0])(placed, given)\n'
        '    whole = sum(x.sharding.is_fully_replicated for x in jax.tree.leaves(placed["adapter"]))\n'
        '    print(float(loss), whole)\n'
    )
    environment = {
        **os.environ,
        'XLA_FLAGS': flags,
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(pathlib.Path(__file__).parent),
    }
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (one, all_whole), (eight, few_whole) = (map(float, line.split()) for line in done.stdout.splitlines()[-2:])
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert few_whole < all_whole


def test_the_teacher_of_a_distillation_is_a_part_of_its_own():
    comsl = tiny.system(speech=SHORT, mt_distil_alpha=0.2)
    assert comsl.teacher == 'teacher' and made()[0].teacher is None
    assert comsl.answering.teacher is None and comsl.answering.config.mt == comsl.config.mt
    params = tiny.params(comsl)
    assert flatten(params['teacher']).keys() == flatten(params['llm']).keys()
    nothing = dict.fromkeys(LOSSES, 0.0)
    alone = tiny.with_config(comsl, **nothing | {'mt': 1.0})
    slope = jax.jit(jax.grad(lambda params: alone.loss(params, tiny.batch(), None)[0]))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope['teacher']))
    assert np.any(slope['llm']['token_embedder']['embedding'])
    assert not np.any(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slope['adapter'])]))
