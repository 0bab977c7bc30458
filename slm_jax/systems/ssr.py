"""SSR-Connector (arXiv 2410.00168): a frozen speech encoder and an LLM joined by one vector for each text token.

An aligner says where in the speech each token is said, and the compressor gives one vector for it. In the first stage
the vectors learn to be the embeddings of these tokens, the LLM being frozen; in the second the LLM learns to go on from
what it hears, beside texts, so that it forgets less.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from slm_jax import decoding
from slm_jax.adapters import lora as lora_lib
from slm_jax.data.prompts import SPEECH
from slm_jax.encoders import aligners
from slm_jax.encoders.spelling import Spelling
from slm_jax.llms import LanguageModel, embedding_params, initial_params
from slm_jax.systems import Batch, Metrics, Params, spoken_prompt
from slm_jax.systems.aligner import frame_rate, label_times, spelling_of, transcript
from slm_jax.systems.speech_encoder import unheard
from slm_jax.systems.text_to_text import (
    begin,
    generate,
    log_likelihood,
    proceed,
    target_logits,
    token_loss,
    without_speech,
)

_EOS = 1
_OBJECTIVES = ('distil', 'next_token', 'cross_entropy')


class _Said(NamedTuple):
    """What is heard in a batch: a vector for each token, the frames' alignment, and the valid frames of each row."""

    vectors: Float[Array, 'b t e']
    alignment: aligners.Alignment
    frame_lengths: Int[Array, ' b']


@lora_lib.in_methods
@dataclasses.dataclass(frozen=True)
class SSR:
    """Compressed speech stands among the instruction's token embeddings, where the prompt has its mark (`prompts`).

    `objective` is what is learnt, or several with their weights, {'next_token': 1.0, 'distil': 0.5}:
        'distil' (stage 1): the vector of each token of the transcript becomes the token's embedding: `cosine_weight`
            times what the cosine lacks of 1, and `mse_weight` times the squared distance, summed over the width.
        'next_token' (stage 2): each token after what is heard of those before it, which follow the text that the
            prompt has before its mark. With `switch_rate` above 0 speech and text take turns in training: behind each
            token the other begins with this probability.
        'cross_entropy' of a target after its prompt, whatever is asked, as in `SLM`.
    Rows without speech are texts that the last two learn as any LLM does. In the first two the target of a row with
    speech is its transcript, which the aligner is given; in the third, as in all answers, it writes tokens itself.

    Answers are given by the LLM, or, with `probe_answers`, are the tokens that are nearest to the vectors, whatever is
    asked: how well speech is understood before the LLM. None: where 'distil' is the only objective; its training then
    holds the embeddings alone of the LLM.

    `frames_per_token` frames on average are what a token has at least, where the aligner writes tokens: if there are
    more tokens, neighbours share a vector, evenly over the row, and none is left out. `piece_seconds` is the longest
    recording that is heard at once in an answer; of a longer one each piece is heard, and the LLM reads all of them.

    Parameters: 'speech_encoder', 'aligner', 'adapter' (the compressor), 'llm', and 'lora'; see `LoraConfig`.
    """

    speech_encoder: nn.Module
    aligner: nn.Module
    adapter: nn.Module
    llm: LanguageModel
    objective: str | Mapping[str, float] = 'distil'
    cosine_weight: float = 1.0
    mse_weight: float = 1.0
    switch_rate: float = 0.0
    probe_answers: bool | None = None
    frames_per_token: float = 5.0
    piece_seconds: float = 30.0
    lora: lora_lib.LoraConfig | None = None
    token_ends = True  # see `System`

    def __post_init__(self):
        if isinstance(self.objective, Mapping):
            object.__setattr__(self, 'objective', flax.core.freeze(dict(self.objective)))  # can be hashed
        numbers = all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in self._weights.values())
        if not (self._weights and numbers and all(name in _OBJECTIVES for name in self._weights)):
            given = self.objective if isinstance(self.objective, str) else dict(self.objective)
            raise ValueError(
                f'SSR.objective is {given!r}; it must be one of {", ".join(map(repr, _OBJECTIVES))}, or several with '
                "weights above 0, as in {'next_token': 1.0, 'distil': 0.5}."
            )
        for field, valid, remedy in (
            ('cosine_weight', self.cosine_weight >= 0, '0 or more'),
            ('mse_weight', self.mse_weight >= 0 and self.mse_weight + self.cosine_weight > 0, '0 or more, not both 0'),
            ('switch_rate', 0 <= self.switch_rate <= 1, 'between 0 and 1'),
            ('frames_per_token', self.frames_per_token >= 1, '1 or more'),
            ('piece_seconds', self.piece_seconds > 0, 'above 0'),
        ):
            if not valid:
                raise ValueError(f'SSR.{field} is {getattr(self, field)!r}; it must be {remedy}.')

    @property
    def _weights(self) -> Mapping[str, float]:
        return {self.objective: 1.0} if isinstance(self.objective, str) else self.objective

    @property
    def _answers_by_probe(self) -> bool:
        return self._weights.keys() == {'distil'} if self.probe_answers is None else self.probe_answers

    @property
    def reads(self) -> tuple[str, ...] | None:
        """See `System`; while it learns to distil alone, of the LLM the embeddings."""
        if self.probe_answers is not None or not self._answers_by_probe:
            return None
        embeddings = flax.traverse_util.flatten_dict(nn.unbox(embedding_params(self.llm)), sep='/')
        return '(lora/)?(speech_encoder|aligner|adapter)/.*', *(re.escape(f'llm/{path}') for path in embeddings)

    @property
    def answering(self) -> 'SSR':
        """See `System`: with the whole LLM, which scores answers and speech even where the probe writes."""
        return dataclasses.replace(self, probe_answers=self._answers_by_probe)

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.speech_encoder.max_seconds

    @property
    def piece(self) -> float:
        """Seconds of the pieces in which longer recordings are heard; see `System`."""
        return min(self.piece_seconds, self.max_seconds or math.inf)

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters of the four parts, and of LoRA; see `System`."""
        speech_rng, aligner_rng, adapter_rng, llm_rng = jax.random.split(rng, 4)
        samples, lengths = batch['speech_samples'], batch['speech_lengths']
        if samples.shape[1] == 0:  # a text-only batch says nothing of the speech parts
            samples = jnp.zeros((samples.shape[0], 16_000), samples.dtype)
        fresh = lora_lib.Fresh(self.lora)
        with fresh.part('speech_encoder'):
            heard, speech = self.speech_encoder.init_with_output(speech_rng, samples, lengths)
        frames, frame_lengths = heard[:2]
        tokens, count = transcript(batch)
        with fresh.part('aligner'):
            aligner = aligners.initial_params(self.aligner, aligner_rng, frames, frame_lengths, tokens, count)
        with fresh.part('adapter'):
            adapter = self.adapter.init(adapter_rng, frames, frame_lengths, tokens, count)['params']
        with fresh.part('llm'):
            llm = initial_params(self.llm, llm_rng)
        parts = {'speech_encoder': speech.get('params', {}), 'aligner': aligner, 'adapter': adapter}
        return fresh.apart({name: part for name, part in parts.items() if part} | {'llm': llm})

    def check_data(self, batch: Mapping[str, Any]) -> None:
        """See `System`.

        Raises:
            ValueError: alignments are to come from files, and there is none, or they count other frames.
        """
        if not isinstance(self.aligner, aligners.ExternalAligner):
            return
        if not np.any(batch['token_ends']):
            raise ValueError(
                'ExternalAligner (SSR.aligner) goes by what files say of transcripts, and no task of the data has any. '
                'Give lines of the manifest "alignment" (slm_jax/data/alignments.py), or choose another aligner, as '
                'models/ssr_aligner_characters.gin.'
            )
        told, rate = self.aligner.frames_per_second, frame_rate(self.speech_encoder)
        if abs(told - rate) > 0.01 * rate:
            raise ValueError(
                f'ExternalAligner.frames_per_second is {told:g}, and the speech encoder has {rate:g}: give '
                f'--gin.ExternalAligner.frames_per_second={rate:g}.'
            )

    def _said(self, params: Params, batch: Batch, rng: Key[Array, ''] | None, written: bool) -> _Said | None:
        """What is heard; None of a batch of texts. `written`: the target is a transcript, and is given to the aligner.

        Raises:
            ValueError: the aligner needs a transcript, and there is none.
        """
        heard = spoken_prompt.hear(self.speech_encoder, params, batch, rng)
        if heard is None:
            return None
        frames, lengths = heard[:2]
        given: tuple[Any, ...] = ()
        if written:
            given = *transcript(batch), batch.get('token_ends')
        elif self.aligner.needs_tokens:
            raise ValueError(
                f'{type(self.aligner).__name__} (SSR.aligner) needs the transcript, which nobody has of what is to be '
                "answered: with it SSR.objective 'distil' and 'next_token' are learnt and evaluated. Train and answer "
                'with an aligner that writes tokens itself (--gin_file=models/ssr_aligner_subwords.gin).'
            )
        alignment = self.aligner.apply({'params': params.get('aligner', {})}, frames, lengths, *given)
        if not written:
            alignment = self._few(alignment, lengths)
        vectors = self.adapter.apply(
            {'params': params['adapter']},
            frames,
            lengths,
            alignment.boundaries,
            alignment.lengths,
            rng is None,
            rngs=None if rng is None else {'dropout': rng},
        )
        return _Said(vectors, alignment, lengths)

    def _few(self, alignment: aligners.Alignment, frame_lengths: Int[Array, ' b']) -> aligners.Alignment:
        """The alignment of no more tokens than there is room for: neighbours share a segment, and the last one's token.

        A row's room goes by its own length: it must not depend on the padding of its batch.
        """
        room = -(-alignment.boundaries.shape[1] // self.frames_per_token)
        most = jnp.ceil(frame_lengths / self.frames_per_token).astype(jnp.int32)
        count = alignment.lengths[:, None]
        kept = jnp.minimum(count, most[:, None])
        place = jnp.arange(int(room))
        last = ((place + 1) * count + kept - 1) // jnp.maximum(kept, 1) - 1
        last = jnp.where(place < kept, last, alignment.boundaries.shape[1])
        boundaries, tokens = (
            jnp.take_along_axis(each, last, axis=1, mode='fill', fill_value=0)
            for each in (alignment.boundaries, alignment.tokens)
        )
        return aligners.Alignment(boundaries, kept[:, 0], tokens)

    def _embed(self, params: Params, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        return self.llm.apply({'params': params['llm']}, jnp.maximum(tokens, 0), method='embed')

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """The objectives by their weights.

        Metrics beside theirs: `loss`, their sum; where a transcript is aligned, `cosine`, `mse`, `tokens_per_second`,
        `compression` (frames a token), `too_many_tokens`, the rows whose transcript has more than their frames can
        hold, and `without_alignment`, those of which no file says anything, both of which are left out; and
        `retrieval`, how often the nearest embedding is the token's own, in evaluations.
        """
        metrics: Metrics = {}
        found: dict[str, tuple[Array, Array]] = {}
        if {'distil', 'next_token'} & self._weights.keys():
            said = self._said(params, batch, rng, written=True)
            if said is not None:
                found['distil'], metrics = self._distil(params, batch, said, evaluated=rng is None)
            if 'next_token' in self._weights:
                found['next_token'], metrics['accuracy'] = self._next_token(params, batch, said, rng)
        if 'cross_entropy' in self._weights:
            prompt, mask = self._prompt(params, batch, rng)
            of_target = token_loss(target_logits(self.llm, params['llm'], prompt, mask, batch, rng), batch)[1]
            found['cross_entropy'], metrics['target_accuracy'] = of_target['loss'], of_target['accuracy']
        zero = jnp.float32(0.0), jnp.float32(0.0)
        learnt = {name: found.get(name, zero) for name in self._weights}
        means = {name: value / jnp.maximum(count, 1.0) for name, (value, count) in learnt.items()}
        loss = sum((weight * means[name] for name, weight in self._weights.items()), jnp.float32(0.0))
        if len(learnt) == 1:
            [metrics['loss']] = learnt.values()
        else:
            metrics |= learnt | {'loss': (loss, jnp.float32(1.0))}
        return loss, metrics

    def _distil(
        self, params: Params, batch: Batch, said: _Said, evaluated: bool
    ) -> tuple[tuple[Float[Array, ''], Float[Array, '']], Metrics]:
        """The sum of the objective over the tokens, with their number, and what there is to know of the vectors."""
        tokens, count = said.alignment.tokens, said.alignment.lengths
        there = (jnp.arange(tokens.shape[1]) < count[:, None]).astype(jnp.float32)
        embeddings = jax.lax.stop_gradient(self._embed(params, tokens)).astype(jnp.float32)
        vectors = said.vectors.astype(jnp.float32)
        cosine = jnp.sum(_unit(vectors) * _unit(embeddings), axis=-1)
        mse = jnp.sum(jnp.square(vectors - embeddings), axis=-1)
        total = jnp.sum(there)
        of_loss = jnp.sum((self.cosine_weight * (1.0 - cosine) + self.mse_weight * mse) * there)
        asked = (batch['speech_lengths'] > 0) & jnp.any(batch['decoder_target_tokens'] > _EOS, axis=1)
        missing: Metrics = {}
        if isinstance(self.aligner, aligners.ExternalAligner):
            told = jnp.any(batch['token_ends'] != 0, axis=1)
            untold = jnp.sum(asked & ~told).astype(jnp.float32)
            missing['without_alignment'] = untold, jnp.sum(asked).astype(jnp.float32)
            asked &= told
        fits, rows = jnp.sum(asked & (count > 0)), jnp.sum(asked).astype(jnp.float32)
        heard = (count > 0).astype(jnp.float32)
        metrics = {
            'cosine': (jnp.sum(cosine * there), total),
            'mse': (jnp.sum(mse * there), total),
            'tokens_per_second': (total, jnp.sum(batch['speech_lengths'] * heard) / 16_000),
            'compression': (jnp.sum(said.frame_lengths * heard), total),
            'too_many_tokens': (rows - fits, rows),
            **missing,
        }
        if evaluated:
            right = (self._nearest(params, vectors) == tokens) * there
            metrics['retrieval'] = jnp.sum(right), total
        return (of_loss, total), metrics

    def _nearest(self, params: Params, vectors: Float[Array, 'b t e']) -> Int[Array, 'b t']:
        """The tokens, neither padding nor the end, whose embeddings have the greatest cosine with the vectors."""
        table = self._embed(params, jnp.arange(self.llm.config.vocab_size)[None])[0]
        table = nn.with_logical_constraint(_unit(table.astype(jnp.float32)), ('vocab', 'llm_embed'))
        cosine = jnp.einsum('bte,ve->btv', _unit(vectors.astype(jnp.float32)), table)
        cosine = nn.with_logical_constraint(cosine, ('batch', 'length', 'vocab'))
        return jnp.argmax(cosine.at[..., : _EOS + 1].set(-jnp.inf), axis=-1)

    def _next_token(
        self, params: Params, batch: Batch, said: _Said | None, rng: Key[Array, ''] | None
    ) -> tuple[tuple[Float[Array, ''], Float[Array, '']], tuple[Float[Array, ''], Float[Array, '']]]:
        """Sum and number of the tokens' cross-entropies, and of those that are the likeliest."""
        logits, weights = self._continued(params, batch, said, rng)
        of_target = token_loss(logits, {**batch, 'decoder_loss_weights': weights})[1]
        return of_target['loss'], of_target['accuracy']

    def _continued(
        self, params: Params, batch: Batch, said: _Said | None, rng: Key[Array, ''] | None
    ) -> tuple[Float[Array, 'b t v'], Float[Array, 'b t']]:
        """Logits of the target's tokens, each after what is heard of those before it, and their weights.

        A first token that nothing comes before has none, nor have rows of which nothing is aligned.
        """
        spoken, weights = batch['speech_lengths'] > 0, batch['decoder_loss_weights']
        before = batch['decoder_input_tokens']
        inputs = self._embed(params, before)
        if said is not None:
            count = said.alignment.lengths
            # The input after token i, which is at i + 1, is its vector.
            vectors = jnp.pad(said.vectors, ((0, 0), (1, 0), (0, 0)))[:, :-1].astype(inputs.dtype)
            place = jnp.arange(before.shape[1])
            heard = (place > 0) & (place <= count[:, None])
            if rng is not None and self.switch_rate:
                heard &= _turns(jax.random.fold_in(rng, 1), before.shape, self.switch_rate)
            inputs = jnp.where(heard[..., None], vectors, inputs)
            weights = weights * (~spoken | (count > 0))[:, None]
        tokens = batch['encoder_input_tokens']
        marks = tokens == SPEECH
        marked = jnp.where(jnp.any(marks, axis=1), jnp.argmax(marks, axis=1), 0)
        led = jnp.where(spoken, marked, jnp.sum(tokens > 0, axis=1))
        tokens = jnp.where(jnp.arange(tokens.shape[1]) < led[:, None], without_speech(tokens), 0)
        weights = weights.at[:, 0].multiply(led > 0)
        prompt = self._embed(params, tokens), tokens > 0
        logits = target_logits(self.llm, params['llm'], *prompt, batch, rng, inputs)
        return logits, weights

    def _prompt(
        self, params: Params, batch: Batch, rng: Key[Array, ''] | None
    ) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p']]:
        """What the LLM reads, without a gap between speech and text."""
        tokens, before = batch['encoder_input_tokens'], spoken_prompt.made_before(batch)
        if before is None:
            said = self._said(params, batch, rng, written=False)
            if said is None:
                tokens = without_speech(tokens)
                return self._embed(params, tokens), tokens > 0
            before = said.vectors, said.alignment.lengths[:, None]
        return spoken_prompt.joined(tokens, self._embed(params, tokens), *before)

    @property
    def spelling(self) -> Spelling | None:
        """How words are spelt in the labels of `times`; None of an aligner without CTC."""
        return spelling_of(self.aligner)

    def times(self, params: Params, batch: Batch, labels: Int[Array, 'b l']) -> Float[Array, '2 b l']:
        """Seconds at which each label of the aligner begins and ends; see `alignment.times`."""
        heard = spoken_prompt.hear(self.speech_encoder, params, batch, None)
        assert heard is not None, 'texts alone are not heard'
        frames, lengths, *_ = heard
        return label_times(self, params, frames, lengths, labels)

    def listen(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b s e'], Int[Array, ' b']]:
        """See `System`."""
        said = self._said(params, batch, None, written=False)
        assert said is not None, 'texts alone are not heard'
        nothing = unheard(batch, None, said.alignment.lengths)
        return said.vectors, jnp.where(nothing, 0, said.alignment.lengths)

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens, or those that are nearest to the vectors; see `System`. Where nothing is heard, none."""
        if not self._answers_by_probe:
            return generate(self.llm, params['llm'], *self._asked(params, batch), decode)
        before = spoken_prompt.made_before(batch)
        if before is not None:
            vectors, count = before[0], jnp.sum(before[1], axis=1)
        elif batch.get('speech_frames', batch['speech_samples']).shape[1]:
            vectors, count = self.listen(params, batch)
        else:
            vectors, count = self._embed(params, batch['encoder_input_tokens'][:, :1]), batch['speech_lengths']
        place = jnp.arange(vectors.shape[1] + 1)
        tokens = jnp.pad(self._nearest(params, vectors), ((0, 0), (0, 1)))
        tokens = jnp.where(place < count[:, None], tokens, 0)
        return jnp.where(place == count[:, None], _EOS, tokens)

    def _asked(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p']]:
        """The prompt; nothing of it where nothing is heard."""
        if spoken_prompt.made_before(batch) is None and batch['speech_samples'].shape[1]:
            vectors, lengths = self.listen(params, batch)
            batch = {**batch, 'speech_embeddings': vectors, 'speech_embedding_lengths': lengths[:, None]}
        prompt, mask = self._prompt(params, batch, None)
        return prompt, mask & ~spoken_prompt.silent(batch)[:, None]

    @property
    def answers(self) -> bool:
        """See `System`."""
        return not self.aligner.needs_tokens

    @property
    def in_steps(self) -> bool:
        """See `System`."""
        return not self._answers_by_probe

    def begin(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Any:
        """See `System`."""
        return begin(self.llm, params['llm'], *self._asked(params, batch), decode)

    def proceed(self, params: Params, state: Any, decode: decoding.DecodeConfig, *more: Any) -> Any:
        """See `System`."""
        return proceed(self.llm, params['llm'], state, decode, *more)

    def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' b']:
        """Log-likelihood of each row's target as the answer; see `log_likelihood`."""
        prompt, mask = self._prompt(params, batch, None)
        return log_likelihood(target_logits(self.llm, params['llm'], prompt, mask, batch, None), batch)

    def score_speech(self, params: Params, batch: Batch) -> Float[Array, 'b 2']:
        """Log-likelihood of the tokens that are heard in each row, and their number.

        Each comes after what is heard of those before it, and the first after the text that the prompt has before its
        mark; without any it does not count. Where nothing is heard it is less than that of anything that is.
        """
        said = self._said(params, batch, None, written=False)
        assert said is not None, 'texts alone are not heard'
        tokens, count = said.alignment.tokens, said.alignment.lengths
        heard = {
            'decoder_input_tokens': jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
            'decoder_target_tokens': tokens,
            'decoder_loss_weights': (jnp.arange(tokens.shape[1]) < count[:, None]).astype(jnp.float32),
        }
        batch = batch | heard
        logits, weights = self._continued(params, batch, said, None)
        value = log_likelihood(logits, batch | {'decoder_loss_weights': weights})
        return jnp.stack([jnp.where(count > 0, value, -1e9), jnp.sum(weights, axis=1)], axis=1)


def _unit(x: Float[Array, '*b e']) -> Float[Array, '*b e']:
    # The root of 0 has no gradient.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


def _turns(rng: Key[Array, ''], shape: tuple[int, ...], rate: float) -> Bool[Array, 'b t']:
    """Which places are of the first of two that take turns, each of which ends anywhere at the same rate."""
    ends, first = jax.random.split(rng)
    changed = jnp.cumsum(jax.random.bernoulli(ends, rate, shape), axis=1)
    return (changed + jax.random.bernoulli(first, 0.5, (shape[0], 1))) % 2 == 0
