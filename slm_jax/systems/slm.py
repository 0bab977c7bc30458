"""SLM (arXiv 2310.00230): a frozen speech encoder and a frozen LLM joined by an adapter."""

import dataclasses
import functools
import itertools
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from slm_jax import decoding
from slm_jax.adapters import lora as lora_lib
from slm_jax.data.prompts import SPEECH
from slm_jax.encoders import alignment
from slm_jax.encoders.ctc import ctc_greedy, ctc_loss_of_many
from slm_jax.llms import Heads, LanguageModel, embedding_params, initial_params
from slm_jax.systems import Batch, Metrics, Params, spoken_prompt
from slm_jax.systems.distillation import distillation_loss
from slm_jax.systems.encoder_ctc import mean_ctc
from slm_jax.systems.speech_encoder import frames_of, unheard
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
_OBJECTIVES = ('cross_entropy', 'distil', 'ctc')


@lora_lib.in_methods
@dataclasses.dataclass(frozen=True)
class SLM:
    """Adapted speech stands among the instruction's token embeddings, where the prompt has its mark (`prompts`).

    `label_tokens`, the LLM's token for each label of the encoder's CTC head (-1: it has none; the first, blank's, is
    the one with which a text begins), lets the adapter start from the embeddings of what CTC writes; see `SlmAdapter`.
    For an adapter with a CTC head of its own they are that head's labels; see `TokenCtcAdapter`. `spellings` are the
    labels that together stand for each of the LLM's tokens in that head's targets, () for one that may be any label;
    None: so may all that are no label.

    `token_labels`, the label of each of the LLM's tokens, lets both write a transcript together where
    `DecodeConfig.ctc_weight` is not 0; see `decoding.with_ctc`. An adapter with a CTC head of its own needs none.

    `objective` is what the adapter learns by, or several with their weights, {'cross_entropy': 0.5, 'ctc': 0.5}:
        'cross_entropy' of the target's tokens.
        'distil': the distributions of the same LLM when it reads the transcript in the place of the speech, as in
            Ultravox and DiVA (arXiv 2410.02678); see `distillation_loss`. `distil_temperature` softens them. LoRA is
            no part of the teacher.
        'ctc' of the adapter's own head on the same tokens; see `TokenCtcAdapter`. Where it is the only one, the LLM
            gives its embeddings and is not run.

    `ctc_answers` says whether answers, to whatever is asked, are what this head writes; None: where it is all that
    is learnt by. `heard_from` is the probability that it must give to some label, or nothing is heard.

    `alignment_heads` are the LLM's attention heads that tell where in the speech a token is, where no CTC does; see
    `LanguageModel.attention`.

    `lora` updates linear maps of any of the three; see `LoraConfig`. Its parameters are the part 'lora'.
    """

    speech_encoder: nn.Module
    adapter: nn.Module
    llm: LanguageModel
    label_smoothing: float = 0.0
    label_tokens: tuple[int, ...] | None = None
    spellings: tuple[tuple[int, ...], ...] | None = None
    token_labels: tuple[int, ...] | None = None
    objective: str | Mapping[str, float] = 'cross_entropy'
    distil_temperature: float = 1.0
    ctc_answers: bool | None = None
    heard_from: float = 0.0
    alignment_heads: Heads | None = None
    lora: lora_lib.LoraConfig | None = None

    def __post_init__(self):
        if isinstance(self.objective, Mapping):
            object.__setattr__(self, 'objective', flax.core.freeze(dict(self.objective)))  # can be hashed
        known = all(name in _OBJECTIVES for name in self._weights)
        numbers = all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in self._weights.values())
        if not (self._weights and known and numbers):
            given = self.objective if isinstance(self.objective, str) else dict(self.objective)
            raise ValueError(
                f'SLM.objective is {given!r}; it must be one of {", ".join(map(repr, _OBJECTIVES))}, or '
                "several with weights above 0, as in {'cross_entropy': 0.5, 'distil': 0.5}."
            )
        if self.alignment_heads is not None:
            object.__setattr__(self, 'alignment_heads', tuple(map(tuple, self.alignment_heads)))  # can be hashed
        if not 0 < self.distil_temperature < math.inf:
            raise ValueError(f'SLM.distil_temperature is {self.distil_temperature!r}; it must be above 0.')

    @property
    def _weights(self) -> Mapping[str, float]:
        return {self.objective: 1.0} if isinstance(self.objective, str) else self.objective

    @property
    def teacher(self) -> str | None:
        """See `System`."""
        return 'llm' if 'distil' in self._weights else None

    @property
    def _by_ctc_alone(self) -> bool:
        return self._weights.keys() == {'ctc'}

    @property
    def _own_labels(self) -> tuple[int, ...] | None:
        """The LLM's tokens that the adapter writes by CTC itself; None where it has no such head."""
        return self.label_tokens if hasattr(self.adapter, 'label_logits') else None

    @property
    def _answers_by_ctc(self) -> bool:
        return self._by_ctc_alone if self.ctc_answers is None else self.ctc_answers

    @property
    def reads(self) -> tuple[str, ...] | None:
        """See `System`."""
        if not (self._by_ctc_alone and self._answers_by_ctc):
            return None
        embeddings = flax.traverse_util.flatten_dict(nn.unbox(embedding_params(self.llm)), sep='/')
        return '(lora/)?(speech_encoder|adapter)/.*', *(re.escape(f'llm/{path}') for path in embeddings)

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.speech_encoder.max_seconds

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters of the three parts, and of LoRA; see `System`."""
        speech_rng, adapter_rng, llm_rng = jax.random.split(rng, 3)
        samples, lengths = batch['speech_samples'], batch['speech_lengths']
        if samples.shape[1] == 0:  # a text-only batch says nothing of the speech parts
            samples = jnp.zeros((samples.shape[0], 16_000), samples.dtype)
        fresh = lora_lib.Fresh(self.lora)
        with fresh.part('speech_encoder'):
            heard, speech = self.speech_encoder.init_with_output(speech_rng, samples, lengths)
        with fresh.part('llm'):
            llm = initial_params(self.llm, llm_rng)
        labels = self._label_embeddings(llm)
        with fresh.part('adapter'):
            adapter = self.adapter.init(adapter_rng, *heard, label_embeddings=labels)['params']
        return fresh.apart({'speech_encoder': speech['params'], 'adapter': adapter, 'llm': llm})

    def _label_embeddings(self, llm: Params) -> Float[Array, 'v e'] | None:
        if self.label_tokens is None:
            return None
        if (last := max(self.label_tokens)) >= self.llm.config.vocab_size:
            raise ValueError(
                f'SLM.label_tokens has the token {last} and the language model has {self.llm.config.vocab_size}: they '
                'are of another tokenizer (vocabularies.names.llm).'
            )
        tokens = jnp.array(self.label_tokens)
        embeddings = self.llm.apply({'params': llm}, jnp.maximum(tokens, 0), method='embed')
        return jnp.where(tokens[:, None] >= 0, embeddings, 0.0)

    def _prompt(
        self, params: Params, batch: Batch, rng: Key[Array, ''] | None
    ) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p'], dict]:
        """What the LLM reads, without a gap between speech and text, and the parts it was made of."""
        tokens, before = batch['encoder_input_tokens'], spoken_prompt.made_before(batch)
        heard = None if before else self._hear(params, batch, rng)
        if heard is None and before is None:
            tokens = without_speech(tokens)
            return self.llm.apply({'params': params['llm']}, tokens, method='embed'), tokens > 0, {}
        text = self.llm.apply({'params': params['llm']}, jnp.maximum(tokens, 0), method='embed')
        if before is not None:
            return *spoken_prompt.joined(tokens, text, *before), {}
        assert heard is not None
        speech, speech_lengths = self._adapt(params, heard, rng)
        joined, mask = spoken_prompt.joined(tokens, text, speech, speech_lengths[:, None])
        starts = jnp.argmax(tokens == SPEECH, axis=1)  # 0 where there is no mark
        parts = {'speech': speech, 'speech_lengths': speech_lengths, 'speech_starts': starts, 'heard': heard}
        return joined, mask, parts | {'ctc_logits': heard[2], 'frame_lengths': heard[1]}

    def listen(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b s e'], Int[Array, ' b']]:
        """See `System`."""
        heard = self._hear(params, batch, None)
        assert heard is not None, 'texts alone are not heard'
        speech, lengths = self._adapt(params, heard, None)
        said = heard[2] if self.label_tokens is not None else None, heard[1]
        if self._own_labels is not None:
            said = None, jnp.sum(self._written(params, batch, heard) > 0, axis=1)
        return speech, jnp.where(unheard(batch, *said), 0, lengths)

    def _hear(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Any, ...] | None:
        return spoken_prompt.hear(self.speech_encoder, params, batch, rng)

    def _adapt(self, params: Params, heard: tuple[Any, ...], rng: Key[Array, ''] | None, method: str | None = None):
        """What the adapter, or a method of it, makes of what was heard."""
        return self.adapter.apply(
            {'params': params['adapter']},
            *heard,
            rng is None,
            self._label_embeddings(params['llm']),
            rngs=None if rng is None else {'dropout': rng},
            method=method,
        )

    def _label_logits(
        self, params: Params, batch: Batch, heard: tuple[Any, ...] | None, rng: Key[Array, ''] | None
    ) -> tuple[Float[Array, 'b s v'], Int[Array, ' b']]:
        """CTC logits of the adapter and their number, which is 0 where there is no speech."""
        if self._own_labels is None:
            raise ValueError(
                "SLM.objective 'ctc' and SLM.ctc_answers need an adapter with a CTC head and SLM.label_tokens, as in "
                "models/slm_base.gin; use 'cross_entropy' and None for any other."
            )
        if heard is None:
            rows = len(batch['speech_lengths'])
            return jnp.zeros((rows, 1, len(self._own_labels))), jnp.zeros(rows, jnp.int32)
        return self._adapt(params, heard, rng, 'label_logits')

    def _written(self, params: Params, batch: Batch, heard: tuple[Any, ...] | None) -> Int[Array, 'b s']:
        """What the adapter's CTC head writes, labels first and then 0; nothing where nothing is heard."""
        logits, lengths = self._label_logits(params, batch, heard, None)
        valid = jnp.arange(logits.shape[1]) < lengths[:, None]
        likeliest = jnp.max(jax.nn.softmax(logits)[..., 1:], axis=-1)
        sure = jnp.max(jnp.where(valid, likeliest, 0.0), axis=1) >= self.heard_from
        nothing = unheard(batch, None, jnp.where(sure, lengths, 0))
        return jnp.where(nothing[:, None], 0, ctc_greedy(logits, lengths))

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """The objectives by their weights.

        Metrics beside theirs: `loss` (of CTC alone, its own; else the cross-entropy), `accuracy`, and
        `speech_text_cosine`, between the mean adapted speech embedding of a clip and the mean embedding of its target
        tokens.
        """
        if self._by_ctc_alone:
            loss, metrics = self._ctc(params, batch, self._hear(params, batch, rng), rng)
            return self._weights['ctc'] * loss, metrics
        prompt, mask, parts = self._prompt(params, batch, rng)
        logits = target_logits(self.llm, params['llm'], prompt, mask, batch, rng)
        names = {'cross_entropy', *self._weights} - {'ctc'}
        found = {name: getattr(self, f'_{name}')(params, batch, logits) for name in sorted(names)}
        if 'ctc' in self._weights:
            value, metrics = self._ctc(params, batch, parts.get('heard'), rng)
            found['ctc'] = value, {'ctc' if name == 'loss' else name: metric for name, metric in metrics.items()}
        loss = functools.reduce(operator.add, (weight * found[name][0] for name, weight in self._weights.items()))
        metrics = {name: value for _, its_metrics in found.values() for name, value in its_metrics.items()}
        if parts:
            targets = self.llm.apply({'params': params['llm']}, batch['decoder_target_tokens'], method='embed')
            target_lengths = jnp.sum(batch['decoder_target_tokens'] > 0, axis=1)
            cosine = _cosine(_mean(parts['speech'], parts['speech_lengths']), _mean(targets, target_lengths))
            spoken = (parts['speech_lengths'] > 0).astype(jnp.float32)
            metrics['speech_text_cosine'] = jnp.sum(cosine * spoken), jnp.sum(spoken)
        return loss, metrics

    def _cross_entropy(
        self, params: Params, batch: Batch, logits: Float[Array, 'b t v']
    ) -> tuple[Float[Array, ''], Metrics]:
        return token_loss(logits, batch, self.label_smoothing)

    def _distil(self, params: Params, batch: Batch, logits: Float[Array, 'b t v']) -> tuple[Float[Array, ''], Metrics]:
        """Towards what the LLM says to `teacher_input_tokens`; rows that have none do not count."""
        if 'teacher_input_tokens' not in batch:
            raise ValueError(
                "SLM.objective 'distil' needs teacher_input_tokens in the batch: SpeechTextLoader(teacher=True) gives "
                'them, as `slm-jax train` asks it to. T5X has none.'
            )
        tokens = batch['teacher_input_tokens']
        if tokens.shape[1] == 0:  # texts alone
            return jnp.float32(0.0), {}
        llm = jax.lax.stop_gradient(lora_lib.apart({'llm': params['llm']})['llm'])
        prompt = self.llm.apply({'params': llm}, tokens, method='embed')
        taught = jax.lax.stop_gradient(target_logits(self.llm, llm, prompt, tokens > 0, batch, None))
        weights = batch['decoder_loss_weights'] * jnp.any(tokens > 0, axis=1)[:, None]
        return distillation_loss(logits, taught, weights, self.distil_temperature)

    def _ctc(
        self, params: Params, batch: Batch, heard: tuple[Any, ...] | None, rng: Key[Array, ''] | None
    ) -> tuple[Float[Array, ''], Metrics]:
        """CTC loss per label of the target, its end left out; for those that may be any see `ctc_loss_of_many`."""
        logits, lengths = self._label_logits(params, batch, heard, rng)
        targets = batch['decoder_target_tokens']
        spoken = (targets > _EOS) & (batch['speech_lengths'] > 0)[:, None]
        labels = jnp.where(spoken[..., None], self._spelt()[targets], 0).reshape(len(targets), -1)
        labels = jnp.take_along_axis(labels, jnp.argsort(labels == 0, axis=1, stable=True), axis=1)
        labels = labels[:, : logits.shape[1] + 1]  # one more than slots says enough of a row that does not fit
        loss, metrics = mean_ctc(ctc_loss_of_many(logits, lengths, labels), lengths, labels)
        metrics['not_labels'] = jnp.sum(labels < 0).astype(jnp.float32), jnp.sum(spoken).astype(jnp.float32)
        return loss, metrics

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens; see `System`.

        Of a batch with `transcribed` [batch], only these rows are written with CTC. Where nothing is heard, the answer
        to whatever is asked is empty: in recordings of one value throughout, such as digital silence; of an adapter
        with a CTC head of its own in those in which that writes nothing, as the LLM gets nothing of them, or is sure of
        nothing (`heard_from`); and of any other model that goes by what CTC writes (`label_tokens`, or `token_labels`
        and `ctc_weight`), in those in which blank is likelier than all else at every frame. In less than a second CTC
        has to be all but sure. With `usm_tiny`, of 5,752 recordings of speech (voice prompts in 5 languages, Common
        Voice in 19, orders, digits) none counts as nothing; of 356 noises, hums and tones 336 do. With `slm_base`, of
        775 (prompts, Common Voice in 16, orders, digits, questions) 4 count as nothing, of 165 noises, hums and tones
        all.
        """
        if self._answers_by_ctc:
            if spoken_prompt.made_before(batch):
                raise ValueError(
                    'SLM.ctc_answers: this model answers by its CTC head, which reads one recording, no longer than '
                    'the encoder takes; --gin.SLM.ctc_answers=False lets the language model speak.'
                )
            labels = self._written(params, batch, self._hear(params, batch, None))
            tokens = jnp.pad(jnp.where(labels > 0, jnp.array(self.label_tokens)[labels], 0), ((0, 0), (0, 1)))
            return jnp.where(jnp.arange(tokens.shape[1]) == jnp.sum(labels > 0, axis=1)[:, None], _EOS, tokens)
        return generate(self.llm, params['llm'], *self._asked(params, batch, decode))

    @property
    def in_steps(self) -> bool:
        """See `System`."""
        return not self._answers_by_ctc

    def begin(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Any:
        """See `System`."""
        return begin(self.llm, params['llm'], *self._asked(params, batch, decode))

    def proceed(self, params: Params, state: Any, decode: decoding.DecodeConfig, *more: Any) -> Any:
        """See `System`."""
        return proceed(self.llm, params['llm'], state, decode, *more)

    def _asked(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> tuple[Any, ...]:
        """What `generate` wants besides the language model."""
        prompt, mask, parts = self._prompt(params, batch, None)
        mask, ctc = mask & ~spoken_prompt.silent(batch)[:, None], None
        if parts:
            ctc_logits, lengths, token_labels = self._spelling(params, batch, parts)
            by_ctc = self.label_tokens is not None or (token_labels is not None and decode.ctc_weight > 0)
            said = ctc_logits if by_ctc else None, lengths
            if self._own_labels is not None:
                said = None, jnp.sum(self._written(params, batch, parts['heard']) > 0, axis=1)
            mask = mask & ~unheard(batch, *said)[:, None]
            if decode.ctc_weight:
                ctc = {
                    'log_probs': ctc_logits,
                    'frame_lengths': jnp.where(batch.get('transcribed', True), lengths, 0),
                    'token_labels': self._checked(ctc_logits, token_labels, decode.ctc_weight),
                }
        return prompt, mask, decode, ctc, batch.get('first_tokens')

    def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' b']:
        """Log-likelihood of each row's target as the answer; see `log_likelihood`. CTC takes no part in it.

        Raises:
            ValueError: answers are what the adapter's CTC head writes, whatever is asked.
        """
        if self._answers_by_ctc:
            raise ValueError(
                'SLM.ctc_answers: this model answers by its CTC head and has no likelihoods of other answers; '
                '--gin.SLM.ctc_answers=False lets the language model speak.'
            )
        prompt, mask, _ = self._prompt(params, batch, None)
        return log_likelihood(target_logits(self.llm, params['llm'], prompt, mask, batch, None), batch)

    def _spelling(
        self, params: Params, batch: Batch, parts: Mapping[str, Any]
    ) -> tuple[Float[Array, 'b f l'] | None, Int[Array, ' b'], Any]:
        """CTC logits, the adapter's own or the encoder's, their number, and the label of each of the LLM's tokens."""
        if self._own_labels is None:
            return parts['ctc_logits'], parts['frame_lengths'], self.token_labels
        logits, lengths = self._label_logits(params, batch, parts['heard'], None)
        # One label more, which no frame has, stands for all tokens that are none. Texts begin and end unheard.
        logits = jnp.pad(logits, ((0, 0), (0, 0), (0, 1)), constant_values=-1e9)
        return logits, lengths, self._labels_of_tokens(len(self._own_labels)).at[: _EOS + 1].set(0)

    @property
    def spelt(self) -> Int[np.ndarray, 'v n'] | None:
        """The labels for each of the LLM's tokens, of an adapter with a CTC head of its own; None of any other."""
        return None if self._own_labels is None else np.asarray(self._spelt())

    def times(self, params: Params, batch: Batch, labels: Int[Array, 'b l']) -> Float[Array, '2 b l']:
        """Seconds at which each label, the adapter's or the encoder's, begins and ends; see `alignment.times`."""
        logits = functools.partial(self.ctc_logits, params)
        return alignment.times(*logits(batch), labels, frames_of(lambda batch: logits(batch)[0]))

    def attention(
        self, params: Params, batch: Batch
    ) -> tuple[Float[Array, 'h b t s'], Float[Array, '2 b s'], Int[Array, ' b']]:
        """What of the speech the LLM looks at before it writes each token of the target.

        Returns:
            Weights of its `alignment_heads` at the positions of the speech, the seconds at which each of these begins
            and ends, and how many a row has.
        """
        prompt, mask, parts = self._prompt(params, batch, None)
        assert parts, 'texts alone are not heard'
        weights, _ = self.llm.apply(
            {'params': params['llm']},
            prompt,
            mask,
            batch['decoder_input_tokens'],
            batch['decoder_target_tokens'],
            self.alignment_heads,
            method='attention',
            mutable=['intermediates'],
        )
        lengths = parts['speech_lengths']
        places = parts['speech_starts'][:, None] + jnp.arange(parts['speech'].shape[1])
        weights = jnp.take_along_axis(weights, places[None, :, None], axis=3, mode='clip')
        spans = self._adapt(params, parts['heard'], None, 'spans')
        second = alignment.frame_seconds(frames_of(lambda batch: (self._hear(params, batch, None) or ())[0]))
        return weights, second * spans, lengths

    @property
    def ctc_tokens(self) -> tuple[int, ...] | None:
        """The LLM's token for each label of `ctc_logits`; None where these are the labels of the encoder's head."""
        return self._own_labels

    def ctc_logits(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b f l'], Int[Array, ' b']]:
        """What the CTC head, the adapter's own or the encoder's, says of recordings, and their number of frames."""
        heard = self._hear(params, batch, None)
        if self._own_labels is not None:
            return self._label_logits(params, batch, heard, None)
        assert heard is not None, 'texts alone are not heard'
        return heard[2], heard[1]

    def _labels_of_tokens(self, other: int) -> Int[Array, ' v']:
        """The adapter's label for each of the LLM's tokens, `other` where it has none."""
        tokens = jnp.array(self.label_tokens)[1:]
        return jnp.full(self.llm.config.vocab_size, other).at[tokens].set(jnp.arange(1, len(tokens) + 1))

    def _spelt(self) -> Int[Array, 'v n']:
        """The adapter's labels for each of the LLM's tokens, 0 behind them; -1 alone for any label."""
        if self.spellings is None:
            return self._labels_of_tokens(-1)[:, None]
        table = np.array([*itertools.zip_longest(*self.spellings, fillvalue=0)], np.int32).T
        table = np.pad(table, ((0, self.llm.config.vocab_size - len(table)), (0, 0)))
        table[:, 0] = np.where(table[:, 0] == 0, -1, table[:, 0])
        return jnp.array(table)

    def _checked(self, ctc_logits: Any, token_labels: Any, weight: float) -> Int[Array, ' v']:
        """`token_labels` for all of the LLM's embeddings."""
        if token_labels is None or ctc_logits is None:
            raise ValueError(
                f'DecodeConfig.ctc_weight is {weight}, which needs an adapter with a CTC head (as in '
                'models/slm_base.gin), or a speech encoder with one, a language model that writes single characters '
                'and SLM.token_labels (as in models/slm_tiny.gin); use 0 to let the language model write alone.'
            )
        if len(token_labels) > self.llm.config.vocab_size:
            raise ValueError(
                f'SLM.token_labels are of {len(token_labels)} tokens and the language model has '
                f'{self.llm.config.vocab_size}: they are of another tokenizer (vocabularies.names.llm).'
            )
        # Embeddings without a token are never written.
        return jnp.pad(jnp.array(token_labels), (0, self.llm.config.vocab_size - len(token_labels)))


def _mean(embeddings: Float[Array, 'b l e'], lengths: Int[Array, ' b']) -> Float[Array, 'b e']:
    valid = jnp.arange(embeddings.shape[1]) < lengths[:, None]
    total = jnp.sum(jnp.where(valid[..., None], embeddings, 0.0), axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]


def _cosine(a: Float[Array, 'b e'], b: Float[Array, 'b e']) -> Float[Array, ' b']:
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-9)
