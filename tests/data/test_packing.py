"""Packed rows: nothing is lost, hardly anything is padding, and a text's loss is what it is alone."""

import json

import jax
import numpy as np
import pytest

import gin
from slm_jax import tasks  # noqa: F401  registers them
from slm_jax.data import loader, modalities, packing
from slm_jax.llms.decoder_only import DecoderOnlyConfig
from slm_jax.llms.grown import Grown
from slm_jax.systems.dmlm import DMLM
from slm_jax.training import state as state_lib

CONFIG = DecoderOnlyConfig(
    vocab_size=330, emb_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
)
FIELDS = {'speech': 12, 'image': 6, 'image_size': (2, 2), 'languages': ('en', 'fr')}


@pytest.fixture
def known(vocabulary, tmp_path):
    """known(files, learn_inputs): gin says what the vocabulary has and where the tasks' lines are."""
    from slm_jax.tasks import dmlm

    def say(files, learn_inputs=(), **fields):
        gin.clear_config()
        for name, value in {'llm': CONFIG, **FIELDS, **fields}.items():
            gin.bind_parameter(f'slm_jax.data.modalities.Modalities.{name}', value)
        gin.bind_parameter(f'{dmlm.manifests.__module__}.manifests.files', files)
        gin.bind_parameter(f'{dmlm.manifests.__module__}.manifests.learn_inputs', learn_inputs)

    yield say
    gin.clear_config()


def lines(count=40):
    rng = np.random.default_rng(0)
    return [
        {
            'id': f'clip{i}',
            'text': ' '.join(rng.choice(['hold', 'the', 'line', 'please'], rng.integers(1, 6))),
            'lang': 'en',
            'units': rng.integers(0, 12, rng.integers(3, 40)).tolist(),
            'translation': {'fr': 'Ne quittez pas.'},
            'caption': 'a line',
            'tokens': [[1, 5], [0, 2]],
        }
        for i in range(count)
    ]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / 'units.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines()))
    return str(path)


def test_rows_are_full_and_hold_all():
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 300, 3000).tolist()
    rows = packing.pack(lengths, 1024)
    assert sorted(number for row in rows for number in row) == list(range(3000))
    sums = [sum(lengths[number] for number in row) for row in rows]
    assert max(sums) <= 1024 and np.mean(sums) > 0.97 * 1024
    with pytest.raises(ValueError, match='an example has 301 tokens, and a row takes 300: raise ROW_LENGTH'):
        packing.pack([20, 300], 299)


TASKS = {'dmlm_asr': 1.0, 'dmlm_t2s': 1.0, 'dmlm_caption': 0.5, 'dmlm_speech_lm': 0.5}


@pytest.fixture
def loaders(known, written, tmp_path):
    """(a packed loader, the ordinary one) of a mixture of four tasks."""
    known(dict.fromkeys(TASKS, written), ['dmlm_t2s'])

    def source():
        return loader.SpeechTextLoader(TASKS, 'train', seconds_per_batch=8.0, cache_dir=tmp_path / 'cache')

    return packing.PackedLoader(source, row_length=96, rows=8, seed=3), source()


def system():
    known = modalities.Modalities()
    return DMLM(Grown(CONFIG, known.rows), known)


def texts_of(row):
    """Each text of a packed row as (tokens, which are learnt)."""
    found = []
    for number in range(1, row['decoder_segment_ids'].max(initial=0) + 1):
        here = row['decoder_segment_ids'] == number
        assert row['decoder_positions'][here].tolist() == list(range(here.sum()))
        tokens = [*row['decoder_input_tokens'][here], row['decoder_target_tokens'][here][-1]]
        found.append((tuple(map(int, tokens)), tuple(row['decoder_loss_weights'][here].astype(int).tolist())))
    return found


def rows_of(batch):
    return [{name: array[i] for name, array in batch.items()} for i in range(len(batch['speech_lengths']))]


def test_batches_are_a_function_of_the_step_and_hosts_take_rows_of_them(capsys, loaders):
    packed, plain = loaders
    assert packed.waste < 0.05
    said = capsys.readouterr().err
    assert f'rows of 96 hold 3.2 texts; {packed.waste:.1%} of their places are padding' in said
    (shapes,) = packed.batch_shapes()
    ahead = packed.batches()
    first = [next(ahead)[1] for _ in range(6)]
    assert all({name: (a.shape, a.dtype) for name, a in batch.items()} == shapes for batch in first)
    later = next(packed.batches(4))
    assert later[0] == 4
    jax.tree.map(np.testing.assert_array_equal, later[1], first[4])
    half = next(packed.batches(5, lambda rows: range(4, 12)))[1]  # four that there are, and four that are not
    assert not half['decoder_segment_ids'][4:].any()
    jax.tree.map(
        np.testing.assert_array_equal, {n: a[:4] for n, a in half.items()}, {n: a[4:] for n, a in first[5].items()}
    )
    expected = set()
    for batch, infos in plain.examples():
        for inputs, targets, info in zip(batch['encoder_input_tokens'], batch['decoder_target_tokens'], infos):
            if info is not None:
                both = np.concatenate([inputs[inputs != 0], targets[targets != 0]])
                learnt = np.concatenate([inputs[inputs != 0] < 0, targets[targets != 0] > 0])[1:]
                expected.add((tuple(map(int, abs(both))), tuple(learnt.astype(int).tolist())))
    found = {text for batch in first for row in rows_of(batch) for text in texts_of(row)}
    assert found <= expected and len(found) > 60


def test_loss_of_packed_texts_is_that_of_each_alone(loaders):
    packed, _ = loaders
    model, batch = system(), next(packed.batches())[1]
    params = state_lib.unboxed(jax.jit(lambda: model.init(jax.random.key(0), {}))())
    texts = [text for row in rows_of(batch) for text in texts_of(row)]
    length = max(len(tokens) for tokens, _ in texts)
    alone = {
        'encoder_input_tokens': np.zeros((len(texts), length), np.int32),
        'decoder_target_tokens': np.zeros((len(texts), 8), np.int32),
        'decoder_loss_weights': np.zeros((len(texts), 8), np.float32),
    }
    for row, (tokens, learnt) in enumerate(texts):
        alone['encoder_input_tokens'][row, : len(tokens)] = np.array(tokens) * np.array(
            [1, *(1 - 2 * np.array(learnt))]
        )
    loss = jax.jit(lambda params, batch: model.loss(params, batch, None))
    one, metrics = loss(params, batch)
    # The end, which is -1 there, is no mark.
    ends = np.argmax(alone['encoder_input_tokens'] == -1, axis=1)
    alone['encoder_input_tokens'][np.arange(len(texts)), ends] = 0
    alone['decoder_target_tokens'][:, 0], alone['decoder_loss_weights'][:, 0] = 1, 1.0
    other, others = loss(params, alone)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    for name, (value, weight) in metrics.items():
        np.testing.assert_allclose(value, others[name][0], rtol=1e-5, err_msg=name)
        assert weight == others[name][1]


def test_recordings_are_not_packed(known, vocabulary, manifest, tmp_path):
    name = tasks.manifest('packed_recordings', str(manifest))

    def source():
        return loader.SpeechTextLoader(name, 'train', cache_dir=tmp_path / 'cache')

    with pytest.raises(ValueError, match='packed_recordings has recordings, and rows are of tokens alone'):
        packing.PackedLoader(source)
    with pytest.raises(ValueError, match=r'PackedLoader.rows \(ROWS\) is 0; a whole number from 1 on'):
        packing.PackedLoader(source, rows=0)
    with pytest.raises(ValueError, match='have no encoder. Set ENCODED to False'):
        packing.PackedLoader(source, encoder=None)
