"""Generation over one cached step: greedy, beam search with T5X's semantics, and sampling.

Each method is one `lax.while_loop`, so a jitted caller compiles it once per shape, and the loop
ends as soon as no sequence can change. A sequence decodes alike alone and in a batch: no choice
depends on another row, and random keys are folded from example ids.

Shape names: b sequences, k beams, n = b * k rows (the beams of a sequence adjacent), m maximum
length, v vocabulary, f frames, l CTC labels.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32

_METHODS = ('greedy', 'beam', 'sample')
# Finite, as in T5X: impossible candidates still compare and add.
_IMPOSSIBLE = -1.0e7

Cache = Any
# Log-probabilities of the next token. They need not sum to one: what disagrees with CTC (`ctc.with_ctc`) loses.
TokensToLogProbs = Callable[[Int32[Array, 'n 1'], Cache], tuple[Float[Array, 'n v'], Cache]]


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How to generate.

    Attributes:
        method: 'greedy', 'beam' or 'sample'.
        max_decode_length: most tokens generated, the end token included.
        max_length_ratio: and at most this times what the encoder has read (speech and text), as ESPnet's
            `maxlenratio`: a model that repeats itself stops there. None: no such limit.
        beam_size, alpha: for 'beam'; scores are divided by ((5 + length) / 6) ** alpha.
        ctc_weight: of the CTC head's log-probability beside the language model's, for transcription: see `with_ctc`.
        temperature: for 'sample'; logits are divided by it.
        top_k: for 'sample'; only the k likeliest tokens, 0 for all.
        top_p: for 'sample'; only the fewest tokens whose probability reaches top_p, 1.0 for all.
        seed: for 'sample'.
    """

    method: str = 'greedy'
    max_decode_length: int = 128
    max_length_ratio: float | None = None
    beam_size: int = 4
    alpha: float = 0.6
    ctc_weight: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def beams(self) -> int:
        """Beams of a sequence that a cache has to hold."""
        return self.beam_size if self.method == 'beam' else 1

    def __post_init__(self):
        for field, valid, remedy in (
            ('method', self.method in _METHODS, f'one of {_METHODS}'),
            ('max_decode_length', self.max_decode_length >= 1, 'at least 1'),
            (
                'max_length_ratio',
                self.max_length_ratio is None or self.max_length_ratio > 0,
                'above 0, or None',
            ),
            ('beam_size', self.beam_size >= 1, 'at least 1'),
            ('ctc_weight', 0 <= self.ctc_weight <= 1, 'in [0, 1]'),
            ('temperature', self.temperature > 0, "above 0 (for none, use method 'greedy')"),
            ('top_k', self.top_k >= 0, 'at least 0'),
            ('top_p', 0 < self.top_p <= 1, 'in (0, 1]'),
        ):
            if not valid:
                raise ValueError(f'DecodeConfig.{field} is {getattr(self, field)!r}; it must be {remedy}.')


class Search(NamedTuple):
    """A search as a loop, which may be left and gone on with.

    Attributes:
        state: before the first step; arrays, the first of which is how many steps were taken.
        going: of a state, whether another step may change anything.
        step: from state to state.
        result: of a state, the sequences and their scores.
        settled: of a state, tokens [b, m], how many of them [b] stay as they are whatever follows, and which rows [b]
            stay so in whole.
    """

    state: Any
    going: Callable[[Any], Bool[Array, '']]
    step: Callable[[Any], Any]
    result: Callable[[Any], tuple[Array, Array]]
    settled: Callable[[Any], tuple[Int32[Array, 'b m'], Int[Array, ' b'], Bool[Array, ' b']]]

    def run(self) -> tuple[Array, Array]:
        """The result when nothing changes any more."""
        return self.result(lax.while_loop(self.going, self.step, self.state))


def decode(*args: Any, **kwargs: Any) -> tuple[Int32[Array, 'b m'], Float[Array, ' b']]:
    """Generates one sequence per row, see `search`: tokens, 0 after the end token, and scores."""
    return search(*args, **kwargs).run()


def search(
    tokens_to_log_probs: TokensToLogProbs,
    cache: Cache,
    batch_size: int,
    config: DecodeConfig,
    eos_id: int = 1,
    *,
    cache_batch_axis: int = 0,
    active: Bool[Array, ' b'] | None = None,
    example_ids: Int[Array, ' b'] | None = None,
) -> Search:
    """What generates one sequence per row; the first input token is 0, as in T5.

    Args:
        tokens_to_log_probs: one step, (tokens [n, 1], cache) to (log-probabilities [n, v] in float32, cache).
        cache: arrays with a batch axis of size `batch_size` at `cache_batch_axis`, and scalars. Those called
            `cached_key` and `cached_value` have room for all beams of a sequence, and a search leaves them as they are
            (`T5`'s `written_by` says which beam wrote what). None, where a search goes on from a state.
        batch_size: b.
        config: how to generate.
        eos_id: the token that ends a sequence.
        active: rows to generate; a False row (padding of a short batch) never prolongs the loop,
            and its result is of no meaning.
        example_ids: for 'sample', what makes the randomness of a row its own, whatever batch it
            stands in. Row numbers if None.

    Returns:
        Its result is tokens, 0 after the end token; and scores: the log-probability of the sequence under the
        model (before temperature and truncation), for 'beam' divided by the brevity penalty where
        the sequence ended.
    """
    if config.method == 'beam':
        beams = _beams(
            tokens_to_log_probs, cache, batch_size, config.beam_size, config.alpha,
            config.max_decode_length, eos_id, cache_batch_axis, active, wanted=1,
        )  # fmt: skip

        def best(state):
            tokens, scores = beams.result(state)
            return tokens[:, -1], scores[:, -1]

        return beams._replace(result=best)
    if config.method == 'greedy':
        choose = lambda log_probs, position: jnp.argmax(log_probs, axis=-1)
    else:
        ids = jnp.arange(batch_size) if example_ids is None else example_ids
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), ids)

        def choose(log_probs, position):
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
            return jax.vmap(jax.random.categorical)(step_keys, truncate(log_probs, config))

    def step(state):
        position, tokens, scores, done, cache = state
        previous = lax.dynamic_slice_in_dim(tokens, position, 1, axis=1)
        log_probs, cache = tokens_to_log_probs(previous, cache)
        chosen = choose(log_probs, position).astype(jnp.int32)
        log_prob = jnp.take_along_axis(log_probs, chosen[:, None], 1)[:, 0]
        scores = jnp.where(done, scores, scores + log_prob)
        written = jnp.where(done, 0, chosen)[:, None]
        tokens = lax.dynamic_update_slice_in_dim(tokens, written, position + 1, axis=1)
        return position + 1, tokens, scores, done | (chosen == eos_id), cache

    # Column 0 holds the first input token.
    tokens = jnp.zeros((batch_size, config.max_decode_length + 1), jnp.int32)
    passive = jnp.zeros(batch_size, bool) if active is None else ~active
    return Search(
        (jnp.int32(0), tokens, jnp.zeros(batch_size), passive, cache),
        lambda state: (state[0] < config.max_decode_length) & ~jnp.all(state[3] | passive),
        step,
        lambda state: (state[1][:, 1:], state[2]),
        lambda state: (state[1][:, 1:], jnp.broadcast_to(state[0], batch_size), state[3]),
    )


def limited(
    tokens_to_log_probs: TokensToLogProbs, cache: Cache, lengths: Int[Array, ' b'], eos_id: int = 1
) -> tuple[TokensToLogProbs, Cache]:
    """(tokens_to_log_probs, cache) that generate at most `lengths` tokens: the last of them can only be the end."""

    def step(tokens, state):
        cache, position = state
        log_probs, cache = tokens_to_log_probs(tokens, cache)
        last = position + 1 >= jnp.repeat(lengths, tokens.shape[0] // lengths.shape[0])
        ends = jnp.where(jnp.arange(log_probs.shape[-1]) == eos_id, 0.0, 100 * _IMPOSSIBLE)
        return jnp.where(last[:, None], ends, log_probs), (cache, position + 1)

    return step, (cache, jnp.int32(0))


def begun(
    tokens_to_log_probs: TokensToLogProbs, cache: Cache, first: Int[Array, ' b']
) -> tuple[TokensToLogProbs, Cache]:
    """(tokens_to_log_probs, cache) that write `first` first, without a choice; 0: whatever is likeliest."""

    def step(tokens, state):
        cache, position = state
        log_probs, cache = tokens_to_log_probs(tokens, cache)
        wanted = jnp.repeat(first, tokens.shape[0] // first.shape[0])[:, None]
        alone = jnp.where(jnp.arange(log_probs.shape[-1]) == wanted, 0.0, 100 * _IMPOSSIBLE)
        return jnp.where((position == 0) & (wanted > 0), alone, log_probs), (cache, position + 1)

    return step, (cache, jnp.int32(0))


def within(
    tokens_to_log_probs: TokensToLogProbs,
    cache: Cache,
    starts: Int[Array, ' b'],
    stops: Int[Array, ' b'],
    counts: Int[Array, ' b'],
    eos_id: int = 1,
) -> tuple[TokensToLogProbs, Cache]:
    """(tokens_to_log_probs, cache) that write tokens of one range for each sequence, `starts` up to before `stops`.

    Log-probabilities are among these alone. After `counts` of them, and not before, a sequence ends; 0: at any time.
    """

    def step(tokens, state):
        cache, position = state
        log_probs, cache = tokens_to_log_probs(tokens, cache)
        ids, beams = jnp.arange(log_probs.shape[-1]), tokens.shape[0] // starts.shape[0]
        start, stop, count = (jnp.repeat(each, beams)[:, None] for each in (starts, stops, counts))
        inside = (ids >= start) & (ids < stop) & ((count == 0) | (position < count))
        inside |= (ids == eos_id) & ((count == 0) | (position >= count))
        return jax.nn.log_softmax(jnp.where(inside, log_probs, 100 * _IMPOSSIBLE)), (cache, position + 1)

    return step, (cache, jnp.int32(0))


def truncate(logits: Float[Array, 'b v'], config: DecodeConfig) -> Float[Array, 'b v']:
    """Logits over temperature, -inf outside the likeliest `top_k` and then `top_p` tokens."""
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        smallest = best_of_all(logits[:, None], config.top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if config.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending)
        # A token stays if those likelier than it have not reached top_p yet; the first always does.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = (before < config.top_p).at[:, 0].set(True)
        smallest = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


def beam_search(
    tokens_to_log_probs: TokensToLogProbs,
    cache: Cache,
    batch_size: int,
    beam_size: int,
    alpha: float,
    max_decode_length: int,
    eos_id: int = 1,
    *,
    cache_batch_axis: int = 0,
    active: Bool[Array, ' b'] | None = None,
) -> tuple[Int32[Array, 'b k m'], Float[Array, 'b k']]:
    """Beam search, token for token and score for score that of `t5x.decoding.beam_search`.

    Arguments are those of `search`. Beams are in ascending order of score: the best is the last.
    Where no beam of a sequence ended, all are unfinished ones with scores that no penalty divides;
    where only some ended, the others are empty with scores near -1e7.
    """
    return _beams(
        tokens_to_log_probs, cache, batch_size, beam_size, alpha, max_decode_length, eos_id, cache_batch_axis, active,
        wanted=beam_size,
    ).run()  # fmt: skip


def _beams(
    tokens_to_log_probs: TokensToLogProbs,
    cache: Cache,
    batch_size: int,
    beam_size: int,
    alpha: float,
    max_decode_length: int,
    eos_id: int,
    cache_batch_axis: int,
    active: Bool[Array, ' b'] | None,
    wanted: int,
) -> Search:
    """See `beam_search`; goes on until the best `wanted` of each sequence stay as they are."""
    candidates = 2 * beam_size  # Even if half of them end now, enough stay alive.

    def penalty(length):
        return ((5.0 + length) / 6.0) ** alpha

    def best(scores, *others):
        """The `beam_size` best along axis 1, ascending, of scores and what belongs to them."""
        indices = lax.top_k(scores, beam_size)[1][:, ::-1]
        return [_gather(x, indices) for x in (scores, *others)]

    def decided(state):
        """Rows whose result no live beam can change any more, and those where none is possible."""
        _, live_scores, _, ended_scores, _, ended, _ = state
        # A score only falls and the longest sequence has the largest penalty: no live beam of
        # this sequence can ever do better than this.
        bound = live_scores[:, -1:] / penalty(max_decode_length + 1)
        worst = jnp.where(ended, ended_scores, _IMPOSSIBLE)[:, -wanted]
        known = worst > bound[:, 0]
        hopeless = bound[:, 0] < _IMPOSSIBLE / penalty(max_decode_length + 1)
        return (known, hopeless) if active is None else (known | ~active, hopeless | ~active)

    def searching(state):
        known, hopeless = decided(state)
        stop = jnp.all(known) | (jnp.all(hopeless) & (state[0] > 0))
        return (state[0] < max_decode_length) & ~stop

    def step(state):
        position, live_scores, live, ended_scores, ended_tokens, ended, cache = state
        previous = lax.dynamic_slice_in_dim(live, position, 1, axis=2)
        log_probs, cache = tokens_to_log_probs(previous.reshape(-1, 1), cache)
        vocab_size = log_probs.shape[-1]
        totals = log_probs.reshape(batch_size, beam_size, -1) + live_scores[:, :, None]
        totals, indices = best_of_all(totals, candidates)
        beams, tokens = indices // vocab_size, indices % vocab_size
        extended = lax.dynamic_update_slice_in_dim(
            _gather(live, beams), tokens[:, :, None].astype(jnp.int32), position + 1, axis=2
        )
        ends = tokens == eos_id

        live_scores, live, beams = best(totals + ends * _IMPOSSIBLE, extended, beams)
        rows = (jnp.arange(batch_size)[:, None] * beam_size + beams).reshape(-1)
        cache = _of_beams(lambda x: jnp.take(x, rows, cache_batch_axis, mode='clip'), cache)

        scores = totals / penalty(position + 1) + ~ends * _IMPOSSIBLE
        ended_scores, ended_tokens, ended = best(
            jnp.concatenate([ended_scores, scores], 1),
            jnp.concatenate([ended_tokens, extended], 1),
            jnp.concatenate([ended, ends], 1),
        )
        return position + 1, live_scores, live, ended_scores, ended_tokens, ended, cache

    shape = (batch_size, beam_size)
    empty = jnp.zeros((*shape, max_decode_length + 1), jnp.int32)
    # All beams start equal, so only one may live, or each would be found k times.
    first = jnp.broadcast_to(jnp.where(jnp.arange(beam_size) == 0, 0.0, _IMPOSSIBLE), shape)
    cache = _of_beams(lambda x: jnp.repeat(x, beam_size, cache_batch_axis), cache)
    state = (
        jnp.int32(0), first, empty, jnp.full(shape, _IMPOSSIBLE), empty,
        jnp.zeros(shape, bool), cache,
    )  # fmt: skip

    def result(state):
        _, live_scores, live, ended_scores, ended_tokens, ended, _ = state
        any_ended = jnp.any(ended, axis=1, keepdims=True)
        tokens = jnp.where(any_ended[:, :, None], ended_tokens, live)
        return tokens[:, :, 1:], jnp.where(any_ended, ended_scores, live_scores)

    def settled(state):
        """What all beams begin with that may still be the best."""
        position, _, live, _, ended_tokens, ended, _ = state
        best_of_each = result(state)[0][:, -1]
        alike = [best_of_each[:, None] == beams[:, :, 1:] for beams in (live, ended_tokens)]
        common = jnp.all(alike[0], axis=1) & jnp.all(alike[1] | ~ended[:, :, None], axis=1)
        lengths = jnp.minimum(jnp.sum(jnp.cumprod(common, axis=1), axis=1), position)
        return best_of_each, lengths, decided(state)[0]

    return Search(state, searching, step, result, settled)


def best_of_all(scores: Float[Array, 'b k v'], count: int) -> tuple[Float[Array, 'b c'], Int32[Array, 'b c']]:
    """The best of all beams and tokens, and where each is in `k * v`; of equal ones the first, as `lax.top_k`.

    A vocabulary that is divided over devices stays so: each gives its own best, and of these few the best are taken.
    """
    batch, beams, vocab_size = scores.shape
    row_axes, token_axes = nn.logical_to_mesh_axes(('batch', 'vocab'))
    parts = _devices(token_axes)
    size = -(-vocab_size // parts)
    if parts > 1 and size > count:
        scores = jnp.pad(scores, ((0, 0), (0, 0), (0, parts * size - vocab_size)), constant_values=-jnp.inf)
        # By hand: of `top_k`, XLA divides neither rows nor anything else but on TPUs.
        spec = PartitionSpec(row_axes if batch % _devices(row_axes) == 0 else None, None, token_axes)
        best = jax.shard_map(lambda scores: lax.top_k(scores, count), in_specs=spec, out_specs=spec)
        scores, places = (x.reshape(batch, beams, parts, count) for x in best(scores))
        places += vocab_size * jnp.arange(beams)[:, None, None] + size * jnp.arange(parts)[:, None]
        # Beam by beam, part by part and best first: of equal scores, the first here is the first of all.
        scores, chosen = lax.top_k(scores.reshape(batch, -1), count)
        return scores, jnp.take_along_axis(places.reshape(batch, -1), chosen, axis=1)
    return lax.top_k(scores.reshape(batch, -1), count)


def _devices(axes: str | tuple[str, ...] | None) -> int:
    """Devices along axes of the mesh that the caller traces for."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in ([axes] if isinstance(axes, str) else axes or ()))


def _of_beams(change: Callable[[Array], Array], cache: Cache) -> Cache:
    """A cache after a change of what each beam has of its own, which keys, values and scalars are not."""

    def changed(path, x):
        shared = jax.tree_util.keystr(path, simple=True).endswith(('cached_key', 'cached_value'))
        return x if shared or not x.ndim else change(x)

    return jax.tree_util.tree_map_with_path(changed, cache)


def _gather(x: Array, indices: Int32[Array, 'b j']) -> Array:
    """x[i, indices[i]] for every i."""
    return jax.vmap(lambda row, index: jnp.take(row, index, axis=0, mode='clip'))(x, indices)
