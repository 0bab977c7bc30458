"""Language models, and all that a system asks of one (`LanguageModel`): T5, and decoder-only ones.

In all of them token 0 is padding, and the first that a text is written after; token 1 ends a text.

Shape names: b batch, l tokens, p prompt, t target, e embedding width, v vocabulary, h chosen heads, n = b * beams.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Heads = Sequence[tuple[int, int]]  # (layer, head) of each, from 0


class LanguageModel(Protocol):
    """A Flax module that reads a prompt of embeddings and writes tokens.

    A prompt is compact: padding comes after the valid positions. What stands there never changes anything.

    Attributes:
        config: `vocab_size`, `emb_dim`, and `cache_batch_axis`, the batch axis of the arrays in a decoding cache.
        init, apply: Flax's.
    """

    config: Any
    init: Any
    apply: Any

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        """Embeddings of tokens, as they stand in a prompt."""

    def logits(
        self,
        prompt: Float[Array, 'b p e'],
        mask: Bool[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        deterministic: bool = True,
        decoder_inputs: Float[Array, 'b t e'] | None = None,
    ) -> Float[Array, 'b t v']:
        """Logits in float32 of a target after a prompt.

        Args:
            prompt, mask: what is read, and which of it is valid.
            decoder_input_tokens: the target shifted right, 0 first.
            decoder_target_tokens: 0 marks padding; None: there is none.
            deterministic: False: drops out, with an rng named 'dropout'.
            decoder_inputs: what is read in the place of the embeddings of `decoder_input_tokens`; the first is not.
        """

    def attention(
        self,
        prompt: Float[Array, 'b p e'],
        mask: Bool[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        heads: Heads | None = None,
    ) -> Float[Array, 'h b t p']:
        """Where it looks before it writes each token of a target: the weights, in float32, of the prompt's positions.

        They are of the decoder's attention to what was read, or where the prompt and the target are one text, of
        self-attention, whose weights of the target's own positions are left out. What masked positions and rows of
        padding have means nothing. Apply with mutable=['intermediates'].

        Args:
            prompt, mask, decoder_input_tokens, decoder_target_tokens: as of `logits`.
            heads: those wanted; None: all of the middle half of the layers. See `chosen`.
        """

    def start(
        self, prompt: Float[Array, 'b p e'], mask: Bool[Array, 'b p'], max_decode_length: int, beams: int = 1
    ) -> None:
        """Reads a prompt, once for all steps: fills 'cache' (of every beam, reordered by a search) and 'cross'.

        Apply with mutable=['cache', 'cross'].
        """

    def step(self, tokens: Int[Array, 'n 1']) -> Float[Array, 'n v']:
        """Logits in float32 of what comes after `tokens`, the first of which is 0; beams of a row are adjacent.

        Apply with {'params', 'cache', 'cross'} and mutable=['cache'].
        """


def cached_step(
    llm: LanguageModel,
    params: Any,
    prompt: Float[Array, 'b p e'],
    mask: Bool[Array, 'b p'],
    max_decode_length: int,
    beams: int = 1,
) -> tuple[Callable[[Any, Any], tuple[Any, Any]], Any]:
    """What `slm_jax.decoding.decode` needs to continue `prompt`, with `beams` for each row.

    Returns:
        (tokens_to_log_probs, cache): tokens_to_log_probs maps (tokens [n, 1], cache) to
        (log-probabilities [n, v], cache). The cache's batch axis is `config.cache_batch_axis`.
    """
    cache, cross = started(llm, params, prompt, mask, max_decode_length, beams)
    return continued(llm, params, cross), cache


def started(
    llm: LanguageModel,
    params: Any,
    prompt: Float[Array, 'b p e'],
    mask: Bool[Array, 'b p'],
    max_decode_length: int,
    beams: int = 1,
) -> tuple[Any, Any]:
    """What is kept of a prompt: the cache, which every step changes, and 'cross', which none does."""
    _, state = llm.apply(
        {'params': params}, prompt, mask, max_decode_length, beams, method='start', mutable=['cache', 'cross']
    )
    return state['cache'], state['cross']


def continued(llm: LanguageModel, params: Any, cross: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The step of `cached_step` after what `started` kept."""

    def tokens_to_log_probs(tokens, cache):
        variables = {'params': params, 'cache': cache, 'cross': cross}
        logits, updated = llm.apply(variables, tokens, method='step', mutable=['cache'])
        return jax.nn.log_softmax(logits), updated['cache']

    return tokens_to_log_probs


def chosen(heads: Heads | None, num_layers: int, num_heads: int) -> Int[np.ndarray, '2 h']:
    """The layers and the heads that `LanguageModel.attention` is asked for.

    Raises:
        ValueError: there is no such layer or head.
    """
    if heads is None:
        middle = range(num_layers // 4, num_layers - num_layers // 4)
        heads = [(layer, head) for layer in middle for head in range(num_heads)]
    places = np.array(heads, int).reshape(-1, 2)
    if not len(places) or (places < 0).any() or (places >= (num_layers, num_heads)).any():
        raise ValueError(
            f'alignment_heads is {heads!r}; (layer, head) of one or more was expected, of {num_layers} layers, from 0, '
            f'of {num_heads} heads.'
        )
    return places.T


def embedding_params(llm: LanguageModel) -> Any:
    """What `embed` reads: abstract parameters, boxed."""
    return jax.eval_shape(lambda: llm.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method='embed')['params'])


def initial_params(llm: LanguageModel, rng: Key[Array, '']) -> Any:
    """Fresh parameters, boxed, whose shapes depend on no batch."""

    def read_and_write(llm, tokens):
        return llm.logits(llm.embed(tokens), tokens == 0, tokens, tokens)

    return llm.init(rng, jnp.zeros((1, 1), jnp.int32), method=read_and_write)['params']
