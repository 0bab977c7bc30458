"""DMLM (arXiv 2406.06582): one decoder over text, units of speech and tokens of images.

The layout of a row is `slm_jax.data.modalities`'. A batch is of prompts and targets, as every loader gives them, or its
rows hold several texts each (`slm_jax.data.packing`); both give the same loss.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding, foundations
from slm_jax.codebooks import codebook
from slm_jax.data import modalities as modalities_lib
from slm_jax.data.modalities import MODALITIES, Modalities
from slm_jax.data.prompts import SPEECH
from slm_jax.foundations import verification
from slm_jax.llms import initial_params
from slm_jax.llms.grown import Grown
from slm_jax.systems import Batch, Metrics, Params
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.systems.text_to_text import generate, without_speech

LOSSES = ('length_normalised', 'token_mean', 'token_weights')
_TABLE, _HEAD = 'token_embedder/embedding', 'decoder/logits_dense/kernel'
_CHUNK = 256  # places whose logits are there at once


@dataclasses.dataclass(frozen=True)
class DMLM:
    """A language model whose table has grown, on rows of several modalities.

    Attributes:
        llm: see `Grown`.
        modalities: of the vocabulary; `llm.rows` are `modalities.rows`.
        objective: what the loss is a mean of:
            'length_normalised': of each text's mean over its tokens of one modality, by `weights`. So a recording of
                hundreds of units counts as the sentence that it says (the paper's; its weights are not published).
            'token_mean': of all tokens alike.
            'token_weights': of all tokens by `weights`.
        weights: of each modality.
        rows_like: a foundation; new rows are drawn with mean and covariance of its table, and those of a head of their
            own with its head's. None: at random, with the deviation of a fresh table.
        sampling: how speech and images are written, where `predict` is not told to sample.
        speech_encoder, layer: what the codebook's units are of, so that recordings are heard; the codebook is then a
            part of its own, `codebook/centroids`. None: units alone are read.
    """

    llm: Grown
    modalities: Modalities
    objective: str = 'length_normalised'
    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(MODALITIES, 1.0))
    rows_like: str | None = None
    sampling: decoding.DecodeConfig = decoding.DecodeConfig('sample', max_decode_length=512)
    speech_encoder: SpeechEncoder | None = None
    layer: int | None = None

    def __post_init__(self):
        if self.objective not in LOSSES:
            raise ValueError(f'DMLM.objective is {self.objective!r}; it must be one of {", ".join(LOSSES)}.')
        modalities_lib.check_weights(self.weights, self.modalities, 'DMLM.weights')
        ranges = self.modalities.text, self.modalities.rows
        if ranges != (self.llm.config.vocab_size, self.llm.rows):
            raise ValueError(
                f'DMLM.modalities are of a table of {ranges[0]} rows that has grown by {ranges[1]}; DMLM.llm has '
                f'{self.llm.config.vocab_size} and {self.llm.rows}. Give both one configuration, as models/dmlm.gin.'
            )

    @property
    def prompt(self) -> modalities_lib.Prompt:
        """How a person's request is put to it."""
        return modalities_lib.Prompt(modalities=self.modalities)

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        params = {'llm': initial_params(self.llm, rng)}
        if self.rows_like is not None:
            for number, (part, source) in enumerate(self._sources.items()):
                ((name, leaf),) = params['llm'][part].items()
                shape = self.llm.rows, self._width
                rows = _drawn_like(self.rows_like, source, jax.random.fold_in(rng, number), shape)
                params['llm'][part] = {name: leaf.replace_boxed(rows if part == 'grown' else rows.T)}
        if self.speech_encoder is not None:
            heard = batch['speech_samples'], batch['speech_lengths']
            params['speech_encoder'] = self.speech_encoder.init(rng, *heard)['params']
            frames, _ = jax.eval_shape(lambda: self._frames(params, batch))
            params['codebook'] = {'centroids': jnp.zeros((self.modalities.speech, frames.shape[-1]))}
        return params

    @property
    def _sources(self) -> dict[str, str]:
        """What of `rows_like` the new rows of each part are like."""
        tied = self.llm.config.logits_via_embedding
        own_head = not (tied if self.llm.tied is None else self.llm.tied)
        return {'grown': _TABLE} | ({'grown_logits': _TABLE if tied else _HEAD} if own_head else {})

    @property
    def _width(self) -> int:
        return self.llm.config.embed_dim or self.llm.config.emb_dim

    def check_fresh(self, paths: Collection[str]) -> None:
        """Whether new rows, if they are among `paths`, can be drawn like those of `rows_like`; see `System`.

        Raises:
            ValueError: it is not there, or has no table of that width.
        """
        drawn = {
            part: source for part, source in self._sources.items() if any(f'llm/{part}/' in path for path in paths)
        }
        if self.rows_like is None or not drawn:
            return
        try:
            stored = foundations.flatten(foundations.stored_tree(foundations.find(self.rows_like) / foundations.PARAMS))
        except ValueError as error:
            raise ValueError(f'DMLM.rows_like: {error}') from error
        for source in drawn.values():
            width = stored[source].shape[0 if source == _HEAD else -1] if source in stored else 'none'
            if width != self._width:
                raise ValueError(
                    f'DMLM.rows_like is {self.rows_like!r}: the width of its {source} is {width}, and new rows have '
                    f'{self._width}. Give the language model that training starts from, or None.'
                )

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return None if self.speech_encoder is None else self.speech_encoder.max_seconds

    def _frames(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b t d'], Int[Array, ' b']]:
        assert self.speech_encoder is not None, 'nothing is heard without one'
        heard = batch['speech_samples'], batch['speech_lengths']
        return self.speech_encoder.apply({'params': params['speech_encoder']}, *heard, self.layer, method='inner')

    def _heard(self, params: Params, batch: Batch) -> Int[Array, 'b p']:
        """Prompts in which the units of a row's recording stand in the place of `prompts.SPEECH`."""
        tokens = batch['encoder_input_tokens']
        if self.speech_encoder is None or not batch['speech_samples'].shape[1]:
            return tokens
        frames, lengths = self._frames(params, batch)
        # As stored frames are, of which the codebook was made.
        nearest = codebook.nearest(params['codebook']['centroids'], frames.astype(jnp.bfloat16))
        units, _, counts = codebook.runs(nearest, lengths)
        marks, each = tokens == SPEECH, jnp.arange(units.shape[1])
        there, place = jnp.any(marks, axis=1, keepdims=True), jnp.argmax(marks, axis=1, keepdims=True)
        units = jnp.where(there & (each < counts[:, None]), self.modalities.ranges['speech'][0] + units, 0)
        old = jnp.arange(tokens.shape[1])
        order = jnp.concatenate([jnp.where(old > place, old + len(each), old), place + each], axis=1)
        both = jnp.concatenate([jnp.where(marks, 0, tokens), units], axis=1)
        return jnp.take_along_axis(both, jnp.argsort(order, axis=1, stable=True), axis=1)

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """The objective; and of each modality the mean over its tokens, `…_loss`, and `…_accuracy`."""
        row = batch if 'decoder_segment_ids' in batch else _row(batch)
        found, right = self._cross_entropy(params, row)
        learnt = row['decoder_loss_weights']
        kind = self._kinds(row['decoder_input_tokens'], row['decoder_positions'])
        texts = row['decoder_segment_ids']
        of_kind = jax.nn.one_hot(kind, len(MODALITIES)) * learnt[..., None]
        share, total = self._shares(of_kind, kind, texts)
        share *= learnt
        metrics = {'loss': (jnp.sum(found * share), total)}
        for number, name in enumerate(MODALITIES):
            if self._has(name):
                mine = of_kind[..., number]
                count = jnp.sum(mine)
                metrics[f'{name}_loss'] = jnp.sum(found * mine), count
                metrics[f'{name}_accuracy'] = jnp.sum(right * mine), count
        return metrics['loss'][0] / jnp.maximum(total, 1e-9), metrics

    def _has(self, name: str) -> bool:
        start, stop = self.modalities.ranges[name]
        return stop > start

    def _shares(
        self, of_kind: Float[Array, 'b l 3'], kind: Int[Array, 'b l'], texts: Int[Array, 'b l']
    ) -> tuple[Float[Array, 'b l'], Float[Array, '']]:
        """How much each prediction counts, and how much all of them do."""
        weights = jnp.array([float(self.weights.get(name, 0.0)) for name in MODALITIES])
        if self.objective == 'token_mean':
            weights = jnp.ones(len(MODALITIES))
        if self.objective != 'length_normalised':
            return weights[kind], jnp.sum(of_kind * weights)
        sums = jax.vmap(lambda each, of: jax.ops.segment_sum(each, of, texts.shape[1] + 1))(of_kind, texts)
        counts = jnp.take_along_axis(sums, texts[..., None], axis=1)  # of a prediction's text, of all kinds
        mine = jnp.take_along_axis(counts, kind[..., None], axis=2)[..., 0]
        return weights[kind] / jnp.maximum(mine, 1.0), jnp.sum((sums > 0) * weights)

    def _kinds(self, tokens: Int[Array, 'b l'], positions: Int[Array, 'b l']) -> Int[Array, 'b l']:
        """The modality of the stretch that each token stands in; text, where a row has no control tokens."""
        first = self.modalities.opener(MODALITIES[0])
        opens = (tokens >= first) & (tokens < first + len(MODALITIES))
        begun = lax.cummax(jnp.where(opens | (positions == 0), jnp.arange(tokens.shape[1]), 0), axis=1)
        return jnp.take_along_axis(jnp.where(opens, tokens - first, 0), begun, axis=1)

    def _cross_entropy(
        self, params: Params, row: Mapping[str, Array]
    ) -> tuple[Float[Array, 'b l'], Float[Array, 'b l']]:
        """Of each prediction, and whether the likeliest is right; logits are there for some places at once."""
        llm = {'params': params['llm']}
        x = self.llm.apply(llm, row['decoder_input_tokens'], method='embed')
        x = self.llm.apply(llm, x, row['decoder_segment_ids'], row['decoder_positions'], method='outputs')
        targets = row['decoder_target_tokens']

        @jax.checkpoint
        def some(each):
            x, targets = each
            logits = self.llm.apply(llm, x, method='head')
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return entropy, (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)

        length = targets.shape[1]
        if length <= _CHUNK:
            return some((x, targets))
        pad = -length % _CHUNK

        def chunks(x):
            x = jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)))
            return jnp.swapaxes(x.reshape(len(x), -1, _CHUNK, *x.shape[2:]), 0, 1)

        entropy, right = (
            jnp.swapaxes(each, 0, 1).reshape(len(targets), -1)[:, :length]
            for each in lax.map(some, (chunks(x), chunks(targets)))
        )
        return entropy, right

    def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' b']:
        """Log-likelihood of each row's target as the answer, to base e."""
        row = _row({**batch, 'encoder_input_tokens': _read(self._heard(params, batch))})
        return -jnp.sum(self._cross_entropy(params, row)[0] * row['decoder_loss_weights'], axis=1)

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens, all of the modality that the prompt's last control token of one names.

        Texts are written as `decode` says. So are speech and images if it samples, but for their length; else they are
        as `sampling` says. An image has exactly the tokens of `Modalities.image_size`, and then its end.
        """
        sampling = self.sampling
        if decode.method == 'sample':
            sampling = dataclasses.replace(decode, max_decode_length=sampling.max_decode_length)
        tokens = _read(self._heard(params, batch))
        prompt, mask = self.llm.apply({'params': params['llm']}, tokens, method='embed'), tokens > 0
        last = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True) - 1, 0)
        kinds = self._kinds(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        kind = jnp.take_along_axis(kinds, last, axis=1)[:, 0]
        bounds = [self.modalities.ranges[name] for name in MODALITIES]
        starts, stops = (jnp.array(each)[kind] for each in zip(*bounds, strict=True))
        images = (kind == MODALITIES.index('image')) & self._has('image')
        places = math.prod(self.modalities.image_size)
        ranges, image = (starts, stops, jnp.where(images, places, 0)), None
        if self._has('image'):
            image = dataclasses.replace(sampling, max_decode_length=places + 1, max_length_ratio=None)
        length = max(how.max_decode_length for how in (decode, sampling, image) if how)

        def written(these, how):
            found = lax.cond(
                jnp.any(these),
                lambda: generate(self.llm, params['llm'], prompt, mask & these[:, None], how, ranges=ranges),
                lambda: jnp.zeros((len(tokens), how.max_decode_length), jnp.int32),
            )
            return jnp.pad(found, ((0, 0), (0, length - how.max_decode_length)))

        texts = kind == MODALITIES.index('text')
        found = jnp.where(texts[:, None], written(texts, decode), written(~texts & ~images, sampling))
        return found if image is None else jnp.where(images[:, None], written(images, image), found)


def _read(tokens: Int[Array, 'b l']) -> Int[Array, 'b l']:
    """Prompts as they are read: of inputs that are learnt too the sign is left out, and marks are."""
    return without_speech(jnp.where(tokens < -1, -tokens, tokens))


def _row(batch: Batch) -> dict[str, Array]:
    """Prompts with their targets as rows of one text each; inputs that are learnt too are negative."""
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    inputs = batch['encoder_input_tokens']
    inputs = jnp.where(inputs == SPEECH, 0, inputs)
    both = jnp.concatenate([inputs, jnp.where(weights > 0, -targets, targets)], axis=1)
    both = jnp.take_along_axis(both, jnp.argsort(both == 0, axis=1, stable=True), axis=1)
    tokens, learnt = jnp.abs(both), both < 0
    return {
        'decoder_input_tokens': tokens[:, :-1],
        'decoder_target_tokens': tokens[:, 1:],
        'decoder_loss_weights': learnt[:, 1:].astype(jnp.float32),
        'decoder_segment_ids': (tokens[:, :-1] > 0).astype(jnp.int32),
        'decoder_positions': jnp.broadcast_to(jnp.arange(tokens.shape[1] - 1), tokens[:, 1:].shape),
    }


def _drawn_like(foundation: str, source: str, rng: Key[Array, ''], shape: tuple[int, ...]) -> Float[Array, 'r e']:
    """New rows with mean and covariance of those that a foundation has.

    They are read when they are drawn, on the host: shapes alone are known without the foundation.
    """

    def drawn(noise):
        import tensorstore

        directory = foundations.find(foundation) / foundations.PARAMS
        table = np.asarray(verification.opened(directory, source, tensorstore.Context()).read().result(), np.float32)
        rows = table.T if source == _HEAD else table
        values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
        scaled = np.asarray(noise) * np.sqrt(np.maximum(values, 0.0))
        return np.asarray(rows.mean(axis=0) + scaled @ vectors.T, np.float32)

    noise = jax.random.normal(rng, shape)
    return jax.pure_callback(drawn, jax.ShapeDtypeStruct(shape, jnp.float32), noise)
