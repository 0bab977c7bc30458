"""Text to text: how the language model is pretrained, and the second half of the cascade that SLM is compared with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from slm_jax import decoding
from slm_jax.decoding import search
from slm_jax.llms import LanguageModel, continued, initial_params, started
from slm_jax.systems import Batch, Metrics, Params

_EOS = 1


@dataclasses.dataclass(frozen=True)
class TextToText:
    """A language model on `encoder_input_tokens`; a batch's speech is not heard.

    In training, a share `decoder_noise` of the tokens that the decoder reads are others of the same row. It learns to
    find its place in the input although what it wrote last may be wrong, as it will be when it generates.
    """

    llm: LanguageModel
    label_smoothing: float = 0.0
    decoder_noise: float = 0.0
    in_steps = True  # see `System`

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        return {'llm': initial_params(self.llm, rng)}

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Cross-entropy of the decoder's tokens."""
        before = batch['decoder_input_tokens']
        if rng is not None and self.decoder_noise:
            where, which = jax.random.split(jax.random.fold_in(rng, 1))
            others = jax.random.permutation(which, before, axis=1, independent=True)
            noisy = jax.random.bernoulli(where, self.decoder_noise, before.shape) & (before > 0) & (others > 0)
            before = jnp.where(noisy, others, before)
        given = {**batch, 'decoder_input_tokens': before}
        logits = target_logits(self.llm, params['llm'], *self._prompt(params, batch), given, rng)
        return token_loss(logits, batch, self.label_smoothing)

    def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' b']:
        """Log-likelihood of each row's target; see `log_likelihood`."""
        prompt = self._prompt(params, batch)
        return log_likelihood(target_logits(self.llm, params['llm'], *prompt, batch, None), batch)

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens; see `System`."""
        return generate(self.llm, params['llm'], *self._prompt(params, batch), decode, None, batch.get('first_tokens'))

    def begin(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Any:
        """See `System`."""
        return begin(self.llm, params['llm'], *self._prompt(params, batch), decode, None, batch.get('first_tokens'))

    def proceed(self, params: Params, state: Any, decode: decoding.DecodeConfig, *more: Any) -> Any:
        """See `System`."""
        return proceed(self.llm, params['llm'], state, decode, *more)

    def _prompt(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p']]:
        tokens = without_speech(batch['encoder_input_tokens'])
        return self.llm.apply({'params': params['llm']}, tokens, method='embed'), tokens > 0


def without_speech(tokens: Int[Array, 'b l']) -> Int[Array, 'b l']:
    """The prompts of rows that are text alone: no mark says where speech stands, and no gap is left by it."""
    order = jnp.argsort(tokens <= 0, axis=1, stable=True)
    return jnp.take_along_axis(jnp.maximum(tokens, 0), order, axis=1)


def generate(
    llm: LanguageModel,
    params: Params,
    prompt: Float[Array, 'b p e'],
    mask: Bool[Array, 'b p'],
    decode: decoding.DecodeConfig,
    ctc: Mapping[str, Any] | None = None,
    first: Int[Array, ' b'] | None = None,
    after: Int[Array, ' b'] | None = None,
    ranges: tuple[Int[Array, ' b'], Int[Array, ' b'], Int[Array, ' b']] | None = None,
) -> Int[Array, 'b l']:
    """Tokens that `llm` writes after reading `prompt`; a row without any input has the end token at once.

    What a limit cut has no end token, be it `max_decode_length` or `max_length_ratio`.
    `ctc` holds what `decoding.with_ctc` needs, where there is a CTC head and `decode.ctc_weight` is not 0; as
    `log_probs`, the head's logits. `first` are the tokens with which the texts have to begin, 0 where any may.
    `after` are those after which they are written, in the place of token 0. `ranges` are the tokens that each row may
    have, and how many it has to, see `decoding.within`.
    """
    state, search = _begun(llm, params, prompt, mask, decode, ctc, first, after, ranges)
    return _finished(search.run()[0], state)


def begin(
    llm: LanguageModel,
    params: Params,
    prompt: Float[Array, 'b p e'],
    mask: Bool[Array, 'b p'],
    decode: decoding.DecodeConfig,
    ctc: Mapping[str, Any] | None = None,
    first: Int[Array, ' b'] | None = None,
    after: Int[Array, ' b'] | None = None,
) -> dict[str, Any]:
    """What `generate` knows before the first token: arrays, with which `proceed` goes on."""
    state, search = _begun(llm, params, prompt, mask, decode, ctc, first, after, None)
    return {**state, 'search': search.state}


def proceed(
    llm: LanguageModel,
    params: Params,
    state: Mapping[str, Any],
    decode: decoding.DecodeConfig,
    steps: Int[Array, ''],
    gone: Bool[Array, ' b'],
) -> tuple[dict[str, Any], tuple[Int[Array, 'b l'], Int[Array, ' b'], Bool[Array, ' b']]]:
    """Writes some tokens more; together they are what `generate` writes.

    Args:
        llm, params, decode: as at `begin`.
        state: of `begin`, or of the call before.
        steps: how many at most.
        gone: rows that are no longer wanted; for them alone nothing is computed.

    Returns:
        The state; and tokens, how many of each row's are sure, and which rows are finished.
    """
    state = {**state, 'active': state['active'] & ~gone}
    search = _search(llm, params, None, state, decode)
    last = state['search'][0] + steps
    after = lax.while_loop(lambda now: (now[0] < last) & search.going(now), search.step, state['search'])
    tokens, sure, over = search.settled(after)
    return {**state, 'search': after}, (_finished(tokens, state), sure, over | ~state['active'] | ~search.going(after))


def _begun(
    llm: LanguageModel,
    params: Params,
    prompt: Float[Array, 'b p e'],
    mask: Bool[Array, 'b p'],
    decode: decoding.DecodeConfig,
    ctc: Mapping[str, Any] | None,
    first: Int[Array, ' b'] | None,
    after: Int[Array, ' b'] | None,
    ranges: tuple[Int[Array, ' b'], Int[Array, ' b'], Int[Array, ' b']] | None,
) -> tuple[dict[str, Any], decoding.Search]:
    """What stays as it is while a text is written, and the search that writes it."""
    cache, cross = started(llm, params, prompt, mask, decode.max_decode_length, decode.beams)
    lengths = jnp.full(len(mask), decode.max_decode_length + 1)
    if decode.max_length_ratio is not None:
        lengths = jnp.ceil(decode.max_length_ratio * jnp.sum(mask, axis=1)).astype(jnp.int32)
    if ctc is not None:
        ctc = {**ctc, 'log_probs': decoding.frame_log_probs(ctc['log_probs'], ctc['frame_lengths'])}
    state = {'cross': cross, 'active': jnp.any(mask, axis=1), 'lengths': lengths, 'ctc': ctc}
    state |= {'first': first, 'after': after, 'ranges': ranges}
    return state, _search(llm, params, cache, state, decode)


def _search(
    llm: LanguageModel, params: Params, cache: Any, state: Mapping[str, Any], decode: decoding.DecodeConfig
) -> decoding.Search:
    axis, step = llm.config.cache_batch_axis, continued(llm, params, state['cross'])
    if state['after'] is not None:
        step = _after(step, state['after'])
    if state['ranges'] is not None:
        step, cache = decoding.within(step, cache, *state['ranges'])
    if state['ctc'] is not None:
        step, cache = decoding.with_ctc(step, cache, **state['ctc'], weight=decode.ctc_weight, cache_batch_axis=axis)
    if decode.max_length_ratio is not None:
        step, cache = decoding.limited(step, cache, state['lengths'])
    if state['first'] is not None:
        step, cache = decoding.begun(step, cache, state['first'])
    rows = len(state['active'])
    return search.search(step, cache, rows, decode, cache_batch_axis=axis, active=state['active'])


def _after(step: Callable, first: Int[Array, ' b']) -> Callable:
    """The same step; a row's own token stands for 0, which is read only before a text and after its end."""

    def after(tokens, cache):
        own = jnp.repeat(first, len(tokens) // len(first))[:, None]
        return step(jnp.where(tokens == 0, own, tokens), cache)

    return after


def _finished(tokens: Int[Array, 'b l'], state: Mapping[str, Any]) -> Int[Array, 'b l']:
    place = jnp.arange(tokens.shape[1])
    cut = place >= state['lengths'][:, None] - 1
    tokens = jnp.where((tokens == _EOS) & cut, 0, tokens)  # `limited` put it there
    return jnp.where(state['active'][:, None], tokens, jnp.where(place == 0, _EOS, 0))


def target_logits(
    llm: LanguageModel,
    params: Params,
    prompt: Float[Array, 'b p e'],
    mask: Bool[Array, 'b p'],
    batch: Batch,
    rng: Key[Array, ''] | None,
    inputs: Float[Array, 'b t e'] | None = None,
) -> Float[Array, 'b t v']:
    """Logits of a batch's target after a prompt, of which `mask` is valid; with an rng it drops out.

    `inputs` are read in the place of the target's embeddings, see `LanguageModel.logits`.
    """
    return llm.apply(
        {'params': params},
        prompt,
        mask,
        batch['decoder_input_tokens'],
        batch['decoder_target_tokens'],
        rng is None,
        inputs,
        rngs=None if rng is None else {'dropout': rng},
        method='logits',
    )


def log_likelihood(logits: Float[Array, 'b l v'], batch: Batch) -> Float[Array, ' b']:
    """Of each row's weighted target tokens, summed, to base e: T5X's score of a text."""
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    return -jnp.sum(cross_entropy * weights, axis=1)


def token_loss(
    logits: Float[Array, 'b l v'], batch: Batch, label_smoothing: float = 0.0
) -> tuple[Float[Array, ''], Metrics]:
    """Mean cross-entropy over the weighted target tokens of the global batch, and the metrics of it."""
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    objective = cross_entropy
    if label_smoothing:
        uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        objective = (1.0 - label_smoothing) * cross_entropy + label_smoothing * uniform
    total = jnp.sum(weights)
    metrics = {
        'loss': (jnp.sum(cross_entropy * weights), total),
        'accuracy': (jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights), total),
    }
    return jnp.sum(objective * weights) / jnp.maximum(total, 1.0), metrics
