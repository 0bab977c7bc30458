"""SSR: what the two stages learn, what a prompt of compressed speech does, and invariance to padding and batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_slm

from slm_jax import foundations
from slm_jax.adapters import lora
from slm_jax.adapters.ssr import SsrCompressor, SsrConfig
from slm_jax.data.prompts import SPEECH
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders import aligners
from slm_jax.systems import ssr, text_to_text
from slm_jax.training import state

LLM = tiny_slm.LLMS['llama']


class Even(nn.Module):
    """Divides the frames evenly; writes the same three tokens of whatever it hears."""

    needs_tokens: bool = False

    @nn.compact
    def __call__(self, frames, frame_lengths, tokens=None, token_lengths=None, token_ends=None):
        if tokens is None:
            assert not self.needs_tokens
            written = jnp.array([70, 80, 90])
            tokens = jnp.zeros(frames.shape[:2], jnp.int32).at[:, :3].set(written[: frames.shape[1]])
            token_lengths = jnp.where(frame_lengths >= 3, 3, 0)
        place = jnp.arange(tokens.shape[1])
        ends = (place + 1) * frame_lengths[:, None] // jnp.maximum(token_lengths, 1)[:, None] - 1
        boundaries, lengths = aligners.partition(ends, token_lengths, frame_lengths)
        return aligners.Alignment(boundaries, lengths, jnp.where(place < lengths[:, None], tokens, 0))


class Ears(nn.Module):
    """A frame each 40 ms: what the samples are, and nothing learnt."""

    max_seconds = None

    @nn.compact
    def __call__(self, samples, lengths, deterministic=True):
        padded = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % 640))).astype(jnp.float32) / 1000
        frames, lengths = padded.reshape(len(samples), -1, 640)[..., :12], -(-lengths // 640)
        return jnp.where((jnp.arange(frames.shape[1]) < lengths[:, None])[..., None], frames, 0), lengths, None


def system(**changes):
    sizes = dict(output_dim=16, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_layers=1)
    parts = dict(aligner=Even(), frames_per_token=1.0)
    return ssr.SSR(Ears(), adapter=SsrCompressor(SsrConfig(**sizes)), llm=LLM, **(parts | changes))


def batch(rows=3, seconds=1.0, tokens=6):
    """Noise of different lengths; a prompt with a mark, and a transcript with its end."""
    rng = np.random.default_rng(0)
    samples = rng.integers(-2000, 2000, (rows, int(seconds * 16_000))).astype(np.int16)
    lengths = np.linspace(len(samples[0]), len(samples[0]) // 2, rows).astype(np.int32)
    targets = rng.integers(3, 259, (rows, tokens + 3)).astype(np.int32)
    count = np.linspace(tokens, tokens // 2, rows).astype(int)[:, None]
    place = np.arange(tokens + 3)
    targets = np.where(place < count, targets, np.where(place == count, 1, 0)).astype(np.int32)
    return {
        'speech_samples': np.where(np.arange(samples.shape[1]) < lengths[:, None], samples, 0).astype(np.int16),
        'speech_lengths': lengths,
        'encoder_input_tokens': np.tile(np.array([[40, 41, SPEECH, 42, 43, 0]], np.int32), (rows, 1)),
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': (targets > 0).astype(np.float32),
    }


@pytest.fixture(scope='module')
def params():
    fresh = nn.unbox(jax.jit(lambda rng: system().init(rng, batch()))(jax.random.key(0)))
    return {**fresh, 'llm': tiny_slm.random_params(LLM)}


def loss(of, params, given, rng=None):
    value, metrics = jax.jit(of.loss)(params, given, rng)
    return float(value), {name: float(total) / max(float(count), 1.0) for name, (total, count) in metrics.items()}


def test_stage_one_goes_towards_the_embeddings_of_the_transcript(params):
    of, given = system(cosine_weight=0.7, mse_weight=0.2), batch()
    value, metrics = loss(of, params, given)
    said = jax.jit(lambda params: of._said(params, given, None, written=True))(params)
    tokens, there = said.alignment.tokens, np.asarray(said.alignment.tokens) > 0
    np.testing.assert_array_equal(np.asarray(tokens)[there], given['decoder_target_tokens'][there])
    assert there.sum(axis=1).tolist() == [6, 4, 3]
    vectors, table = (np.asarray(x, np.float64) for x in (said.vectors, params['llm']['token_embedder']['embedding']))
    wanted = table[np.asarray(tokens)]
    norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(wanted, axis=-1)
    cosine = ((vectors * wanted).sum(-1)[there] / norms[there]).mean()
    mse = ((vectors - wanted) ** 2).sum(-1)[there].mean()
    np.testing.assert_allclose([metrics['cosine'], metrics['mse']], [cosine, mse], rtol=1e-4)
    np.testing.assert_allclose([value, metrics['loss']], 0.7 * (1 - cosine) + 0.2 * mse, rtol=1e-4)
    directions = table[2:] / np.linalg.norm(table[2:], axis=-1, keepdims=True)
    nearest = 2 + np.argmax(vectors[there] @ directions.T, axis=-1)
    np.testing.assert_allclose(metrics['retrieval'], (nearest == np.asarray(tokens)[there]).mean(), rtol=1e-4)
    assert metrics['tokens_per_second'] == pytest.approx(13 / (given['speech_lengths'].sum() / 16_000))
    assert metrics['compression'] == pytest.approx(float(said.frame_lengths.sum()) / 13)


def test_it_learns(params):
    of, given = system(), batch()
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(adapter, memory):
        value, gradient = jax.value_and_grad(lambda a: of.loss(params | {'adapter': a}, given, jax.random.key(0))[0])(
            adapter
        )
        updates, memory = optimizer.update(gradient, memory)
        return optax.apply_updates(adapter, updates), memory, value

    adapter, values = params['adapter'], []
    memory = optimizer.init(adapter)
    for _ in range(60):
        adapter, memory, value = step(adapter, memory)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
    metrics = loss(of, params | {'adapter': adapter}, given)[1]
    assert metrics['cosine'] > 0.8 and metrics['retrieval'] > 0.8


def test_of_the_llm_stage_one_holds_the_embeddings_alone(params):
    assert set(foundations.flatten(state.read(system(), params)['llm'])) == {'token_embedder/embedding'}
    assert system(objective='next_token').reads is None and system(probe_answers=False).reads is None


def test_answering_stage_one_writes_by_the_probe_and_scores_by_the_llm(params):
    of, given = system().answering, batch()
    held = state.read(of, params)
    np.testing.assert_array_equal(
        of.predict(held, given, DecodeConfig()), system().predict(params, given, DecodeConfig())
    )
    scores = jax.jit(of.score_batch)(held, given)
    np.testing.assert_array_equal(scores, jax.jit(system(objective='next_token').score_batch)(params, given))


ALL = {'distil': 1.0, 'next_token': 1.0, 'cross_entropy': 1.0}


def sums(of, params, given):
    """Sum and number of tokens of each objective."""
    metrics = jax.jit(of.loss)(params, given, None)[1]
    return np.array([metrics[name] for name in of.objective if name in metrics])


def test_neither_padding_nor_the_batch_changes_a_loss(params):
    of, given = system(objective=ALL), batch()
    found = sums(of, params, given)
    assert found.shape == (3, 2) and (found > 0).all()
    rng = np.random.default_rng(1)
    behind = np.arange(given['speech_samples'].shape[1]) >= given['speech_lengths'][:, None]
    noise = rng.integers(-9000, 9000, given['speech_samples'].shape).astype(np.int16)
    noisy = given | {'speech_samples': np.where(behind, noise, given['speech_samples'])}
    np.testing.assert_array_equal(sums(of, params, noisy), found)
    longer = {
        name: np.pad(x, [(0, 0), (0, 4000 if name == 'speech_samples' else 5)]) if x.ndim == 2 else x
        for name, x in given.items()
    }
    np.testing.assert_allclose(sums(of, params, longer), found, rtol=1e-5)
    alone = [sums(of, params, {name: x[i : i + 1] for name, x in given.items()}) for i in range(3)]
    np.testing.assert_allclose(np.sum(alone, axis=0), found, rtol=1e-5)


def test_a_transcript_longer_than_the_frames_is_left_out_and_counted(params):
    of, given = system(objective={'distil': 1.0, 'next_token': 1.0}), batch(tokens=6)
    short = given | {'speech_lengths': np.array([16_000, 16_000, 1_000], np.int32)}  # 2 frames for 3 tokens
    two = {name: x[:2] for name, x in short.items()}
    assert loss(of, params, short)[1]['too_many_tokens'] == pytest.approx(1 / 3)
    np.testing.assert_allclose(sums(of, params, short), sums(of, params, two), rtol=1e-5)
    value, metrics = loss(of, params, given | {'speech_lengths': np.zeros(3, np.int32)})
    assert metrics['distil'] == metrics['too_many_tokens'] == 0.0 and value == metrics['next_token'] > 0


def test_text_alone_is_learnt_as_by_the_llm_alone(params):
    of, given = system(objective='next_token'), batch()
    text = given | {'speech_samples': np.zeros((3, 0), np.int16), 'speech_lengths': np.zeros(3, np.int32)}
    expected = jax.jit(text_to_text.TextToText(LLM).loss)(params, text, None)[0]
    assert loss(of, params, text)[0] == pytest.approx(float(expected), abs=1e-5)
    # and beside speech in one batch
    mixed = given | {'speech_lengths': given['speech_lengths'] * np.array([1, 0, 1])}
    rows = [{name: x[i : i + 1] for name, x in each.items()} for each, i in ((given, 0), (text, 1), (given, 2))]
    values, weights = [loss(of, params, row)[0] for row in rows], given['decoder_loss_weights'].sum(axis=1)
    assert loss(of, params, mixed)[0] == pytest.approx(np.average(values, weights=weights), abs=1e-5)


def test_vectors_that_are_the_embeddings_are_read_as_the_text(params):
    of, given = system(objective='next_token'), batch()
    said = jax.jit(lambda params: of._said(params, given, None, written=True))(params)
    true = said._replace(vectors=of._embed(params, said.alignment.tokens))
    for switch_rate in (0.0, 0.4):
        of = system(objective='next_token', switch_rate=switch_rate)
        logits, weights = jax.jit(lambda p, rng, of=of: of._continued(p, given, true, rng))(params, jax.random.key(1))
        read = given | {'encoder_input_tokens': np.tile(np.array([[40, 41]], np.int32), (3, 1))}
        expected = jax.jit(functools.partial(of.llm.apply, method='logits'))(
            {'params': params['llm']},
            of._embed(params, read['encoder_input_tokens']),
            read['encoder_input_tokens'] > 0,
            given['decoder_input_tokens'],
        )
        there = given['decoder_loss_weights'] > 0
        np.testing.assert_array_equal(weights, given['decoder_loss_weights'])
        np.testing.assert_allclose(np.asarray(logits)[there], np.asarray(expected)[there], atol=1e-4)


def test_speech_and_text_take_turns():
    turns = np.asarray(ssr._turns(jax.random.key(0), (50, 400), 0.25))
    changes = turns[:, 1:] != turns[:, :-1]
    assert 0.23 < changes.mean() < 0.27 and 0.45 < turns.mean() < 0.55 and len({*turns[:, 0]}) == 2


def test_the_probe_writes_the_nearest_tokens(params):
    of, given = system(), batch()
    tokens = np.asarray(jax.jit(of.predict, static_argnums=2)(params, given, DecodeConfig()))
    vectors, lengths = jax.jit(of.listen)(params, given)
    assert lengths.tolist() == [3, 3, 3] and (tokens[:, 3] == 1).all() and (tokens[:, 4:] == 0).all()
    np.testing.assert_array_equal(tokens[:, :3], np.asarray(of._nearest(params, vectors))[:, :3])
    silent = given | {'speech_samples': np.zeros_like(given['speech_samples'])}
    tokens = np.asarray(jax.jit(of.predict, static_argnums=2)(params, silent, DecodeConfig()))
    assert (tokens[:, 0] == 1).all() and (tokens[:, 1:] == 0).all()


def test_a_prompt_is_the_same_alone_and_of_embeddings_made_before(params):
    of, given = system(objective='next_token'), batch()
    asked = jax.jit(of._asked)
    prompts, masks = map(np.asarray, asked(params, given))
    assert masks.sum(axis=1).tolist() == [3 + 4] * 3  # three vectors and four tokens
    alone = {name: x[2:] for name, x in given.items()}
    alone['speech_samples'] = alone['speech_samples'][:, : given['speech_lengths'][2]]
    vectors, lengths = jax.jit(of.listen)(params, given)
    made = given | {'speech_samples': np.zeros((3, 0), np.int16)}
    made |= {'speech_embeddings': vectors, 'speech_embedding_lengths': lengths[:, None]}
    for rows, other in ((slice(2, 3), alone), (slice(0, 3), made)):
        found, mask = map(np.asarray, asked(params, other))
        np.testing.assert_allclose(found[mask], prompts[rows][masks[rows]], atol=1e-5)
        assert mask.sum() == masks[rows].sum()
    answers = np.asarray(jax.jit(of.predict, static_argnums=2)(params, given, DecodeConfig(max_decode_length=3)))
    assert answers.shape == (3, 3) and (answers[:, 0] > 0).all()
    assert not np.asarray(asked(params, made | {'speech_embedding_lengths': 0 * lengths[:, None]})[1]).any()


def test_what_is_heard_is_scored_after_the_text_before_it(params):
    of, given = system(objective='next_token'), batch()
    value, tokens = np.asarray(jax.jit(of.score_speech)(params, given)).T
    assert tokens.tolist() == [3, 3, 3] and (value < 0).all()
    # As the loss has it, of a transcript of the same tokens.
    targets = np.tile(np.array([[70, 80, 90, 0, 0, 0, 0, 0, 0]], np.int32), (3, 1))
    written = given | {'decoder_target_tokens': targets, 'decoder_loss_weights': (targets > 0).astype(np.float32)}
    written['decoder_input_tokens'] = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    assert loss(of, params, written)[0] == pytest.approx(-value.sum() / 9, abs=1e-4)
    bare = np.where(np.arange(6) == 0, SPEECH, np.roll(given['encoder_input_tokens'], -3, axis=1))
    bare = given | {'encoder_input_tokens': bare}  # nothing before the speech: its first token does not count
    nothing = bare | {'speech_lengths': np.array([16_000, 0, 0], np.int32)}
    value, tokens = np.asarray(jax.jit(of.score_speech)(params, nothing)).T
    assert tokens.tolist() == [2, 0, 0] and value[1] < -1e8 < value[0]


def test_lora_belongs_to_what_runs(params):
    of = system(objective='next_token', lora=lora.LoraConfig(rank=2, modules=('llm/.*/(query|value)',)))
    fresh = nn.unbox(jax.eval_shape(lambda: of.init(jax.random.key(0), batch())))
    updates = jax.tree.map(lambda x: 0.3 * jnp.ones(x.shape), fresh['lora'])
    plain, _ = loss(of, params, batch())
    assert loss(of, params | {'lora': updates}, batch())[0] != plain


def test_more_tokens_than_there_is_room_for_share_vectors():
    of = system(frames_per_token=2.5)
    boundaries = jnp.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 9, 0, 0, 0, 0, 0, 0, 0, 0]])
    given = aligners.Alignment(boundaries, jnp.array([10, 2]), boundaries + 20)
    few = of._few(given, jnp.array([10, 10]))
    assert few.lengths.tolist() == [4, 2]
    assert few.boundaries.tolist() == [[2, 4, 7, 9], [4, 9, 0, 0]] and few.tokens[0].tolist() == [22, 24, 27, 29]


def test_an_aligner_that_needs_a_transcript_gives_no_answers(params):
    of = system(aligner=Even(needs_tokens=True), objective='next_token')
    loss(of, params, batch())
    with pytest.raises(
        ValueError, match=r'Even \(SSR.aligner\) needs the transcript, .*models/ssr_aligner_subwords.gin'
    ):
        of.predict(params, batch(), DecodeConfig())


def test_alignments_of_files_are_there_and_count_the_encoders_frames(params):
    def by_files(rate):
        return system(aligner=aligners.ExternalAligner(rate))

    ends = np.linspace(0.1, 0.9, 9, dtype=np.float32) * (np.arange(3) > 0)[:, None]
    given = batch() | {'token_ends': ends}
    by_files(25.0).check_data(given)
    system().check_data(batch())
    with pytest.raises(ValueError, match='ExternalAligner .* no task of the data has any. Give lines of the manifest'):
        by_files(25.0).check_data(given | {'token_ends': 0 * ends})
    with pytest.raises(ValueError, match='second is 50, and the speech encoder has 25: give --gin.ExternalAligner.f'):
        by_files(50.0).check_data(given)
    metrics = jax.jit(by_files(25.0).loss)(params, given, None)[1]
    assert [float(x) for x in metrics['without_alignment']] == [1, 3]
    assert [float(x) for x in metrics['too_many_tokens']] == [0, 2] and metrics['cosine'][1] == 4 + 3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'objective': 'mse'}, "SSR.objective is 'mse'; it must be one of 'distil', 'next_token', 'cross_entropy', or"),
        ({'objective': {'distil': 0}}, "SSR.objective is {'distil': 0}"),
        ({'cosine_weight': 0, 'mse_weight': 0}, 'SSR.mse_weight is 0; it must be 0 or more, not both 0.'),
        ({'switch_rate': 2}, 'SSR.switch_rate is 2; it must be between 0 and 1.'),
        ({'frames_per_token': 0.5}, 'SSR.frames_per_token is 0.5; it must be 1 or more.'),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError) as caught:
        system(**changes)
    assert message in str(caught.value)
