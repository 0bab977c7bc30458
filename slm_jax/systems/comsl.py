"""ComSL (arXiv 2305.14838): a speech encoder and the whole of a text model for translation, trained as one.

The speech encoder's frames are adapted, the vector of the spoken language is put before them, and the text model
(mBART) reads them as it reads a text. What it then writes begins with the code of the language to write in: that of
the speech makes it a transcript, another a translation.

Shape names: b batch, n samples, s vectors of speech (the language's included), l tokens of the transcript, t tokens of
the translation, e width, v vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from slm_jax import decoding
from slm_jax.data.prompts import SPEECH
from slm_jax.llms import initial_params
from slm_jax.systems import Batch, Metrics, Params
from slm_jax.systems.cross_modal import mask_tokens, matched, unit_distance
from slm_jax.systems.speech_encoder import stored, unheard
from slm_jax.systems.text_to_text import begin, generate, log_likelihood, proceed

_EOS = 1
_NEEDS = {  # what an example must have for each loss
    'asr': ('speech', 'transcript'),
    'st': ('speech', 'translation'),
    'mt': ('transcript', 'translation'),
    'asr_mix': ('speech', 'transcript'),
    'st_mix': ('speech', 'transcript', 'translation'),
    'mtp': ('speech', 'transcript'),
    'erm': ('speech', 'transcript'),
}
_MIXED = ('asr_mix', 'st_mix', 'mtp', 'erm')
_TRANSCRIBED = ('asr', 'mt', *_MIXED)


@dataclasses.dataclass(frozen=True)
class ComSlConfig:
    """The losses and their weights; 0 leaves a loss out, and the passes that only it needs.

    A weight is of a sum over tokens (of `erm`, over vectors of speech), as in the authors' released code. The loss is
    the weighted sum over the number of tokens of all transcripts and translations of the global batch.

    Attributes:
        mask_token: that stands for a masked token.
        asr, st, mt: of the transcript and the translation from speech, and of the translation from the transcript.
        asr_mix, st_mix, mtp: the same two from the speech half of the mixed pass, and the masked tokens of the
            transcript from its text half (masked token prediction).
        erm: of the distance of hidden states of the speech in the two passes (embedding regularisation).
        ddm_alpha: share of what the text pass says of the translation in `st` and `st_mix`, in the place of the
            translation itself (decoder distribution matching); no gradient goes there.
        mt_distil_alpha: the same of what a frozen text model, the part 'teacher', says, in `mt`; 0: there is none.
        mask_rate: share of the transcript's tokens that the mixed pass gets masked; the language and the end never
            are, and one token always is.
        erm_layer: whose hidden states, 0 is what the first layer reads.
        reference_quirks: what the authors' released code does besides, to compare with it: recordings are filled up to
            the longest and padding is read, gradients are doubled at the encoder's output in the passes of speech and
            of text, and the loss is the sum itself.
    """

    mask_token: int
    asr: float = 0.35
    st: float = 0.35
    mt: float = 0.2
    asr_mix: float = 0.1 / 3
    st_mix: float = 0.1 / 3
    mtp: float = 0.1 / 3
    erm: float = 0.02
    ddm_alpha: float = 0.8
    mt_distil_alpha: float = 0.0
    mask_rate: float = 0.15
    erm_layer: int = 4
    reference_quirks: bool = False

    def __post_init__(self):
        shares = ('ddm_alpha', 'mt_distil_alpha')
        for field, valid, remedy in (
            ('mask_token', self.mask_token > _EOS, "the text model's id of it, above 1"),
            *((name, 0 <= getattr(self, name) < float('inf'), 'at least 0, and finite') for name in _NEEDS),
            *((name, 0 <= getattr(self, name) <= 1, 'in [0, 1]') for name in shares),
            ('mask_rate', 0 < self.mask_rate < 1, 'in (0, 1)'),
            ('erm_layer', self.erm_layer >= 0, 'at least 0'),
        ):
            if not valid:
                raise ValueError(f'ComSlConfig.{field} is {getattr(self, field)!r}; it must be {remedy}.')
        if not self.weights:
            raise ValueError(f'ComSlConfig: the weights of all losses ({", ".join(_NEEDS)}) are 0; one must not be.')

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses that there are."""
        return {name: getattr(self, name) for name in _NEEDS if getattr(self, name)}


class Texts(NamedTuple):
    """What a batch says of its rows.

    Attributes:
        text: the transcript as the text model reads it, its language first and the end last; the language alone where
            there is no transcript.
        into: code of the language to write in.
        translation, weights: target tokens with the end, and which of them count: none where `into` is the language
            of the speech.
        spoken, transcribed, translated: what a row has.
    """

    text: Int[Array, 'b l']
    into: Int[Array, ' b']
    translation: Int[Array, 'b t']
    weights: Float[Array, 'b t']
    spoken: Bool[Array, ' b']
    transcribed: Bool[Array, ' b']
    translated: Bool[Array, ' b']


@dataclasses.dataclass(frozen=True)
class ComSL:
    """A speech encoder, an adapter and a text model with an encoder of embeddings (`llms.mbart.MBart`).

    Of a batch it reads, besides the recordings, codes and texts as `data.languages.begun` has them: prompts begin with
    the code of what is spoken or read, targets (or `first_tokens`, where an answer is to be written) with that of the
    language to write in. The transcript is `teacher_input_tokens`, for rows of text alone the prompt.
    """

    speech_encoder: nn.Module
    adapter: nn.Module
    llm: Any
    config: ComSlConfig
    in_steps = True  # see `System`

    def __post_init__(self):
        config, of_text = self.config, self.llm.config
        if config.mask_token >= of_text.vocab_size:
            raise ValueError(
                f'ComSlConfig.mask_token is {config.mask_token} and the text model has {of_text.vocab_size} tokens: it '
                'is of another tokenizer (vocabularies.names.llm).'
            )
        if config.erm and config.erm_layer > of_text.num_encoder_layers:
            raise ValueError(
                f'ComSlConfig.erm_layer is {config.erm_layer}; the encoder of the text model has '
                f'{of_text.num_encoder_layers} layers. Choose one of them, or set ComSlConfig.erm to 0.'
            )

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.speech_encoder.max_seconds

    @property
    def teacher(self) -> str | None:
        """See `System`."""
        return 'teacher' if self.config.mt_distil_alpha and self.config.mt else None

    @property
    def answering(self) -> 'ComSL':
        """See `System`."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, mt_distil_alpha=0.0))

    @property
    def reads_transcripts(self) -> bool:
        """See `System`."""
        return self._transcribed

    @property
    def _transcribed(self) -> bool:
        return self._has(*_TRANSCRIBED) or (self._has('st') and self.config.ddm_alpha > 0)

    def _has(self, *names: str) -> bool:
        return any(name in self.config.weights for name in names)

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters of the parts; see `System`."""
        rngs = jax.random.split(rng, 4)
        samples, lengths = batch['speech_samples'], batch['speech_lengths']
        if samples.shape[1] == 0:  # a text-only batch says nothing of the speech parts
            samples = jnp.zeros((samples.shape[0], 16_000), samples.dtype)
        heard, speech = self.speech_encoder.init_with_output(rngs[0], samples, lengths)
        params = {
            'speech_encoder': speech['params'],
            'adapter': self.adapter.init(rngs[1], *heard)['params'],
            'llm': initial_params(self.llm, rngs[2]),
        }
        return params | ({'teacher': initial_params(self.llm, rngs[3])} if self.teacher else {})

    def check_data(self, batch: Mapping[str, np.ndarray]) -> None:
        """See `System`.

        Raises:
            ValueError: a loss has a weight, and no row has what it needs.
        """
        texts = self._texts(batch)
        rows = {'speech': texts.spoken, 'transcript': texts.transcribed, 'translation': texts.translated}
        for name, weight in self.config.weights.items():
            if not np.any(np.all([rows[each] for each in _NEEDS[name]], axis=0)):
                needs = ' and '.join(_NEEDS[name])
                raise ValueError(
                    f'ComSlConfig.{name} is {weight:g}, and no task of the data has {needs} in one example. Add such a '
                    "task (translations: of kind 'ast'), or set it to 0."
                )

    def _texts(self, batch: Mapping[str, Any]) -> Texts:
        spoken, text = batch['speech_lengths'] > 0, batch['encoder_input_tokens']
        if self._transcribed:
            if 'teacher_input_tokens' not in batch:
                raise ValueError(
                    'ComSL needs the transcripts, teacher_input_tokens in the batch: SpeechTextLoader(teacher=True) '
                    'gives them, as `slm-jax train` asks it to. T5X has none.'
                )
            width = max(batch['teacher_input_tokens'].shape[1], text.shape[1])
            said, text = (
                jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
                for tokens in (batch['teacher_input_tokens'], text)
            )
            text = jnp.where((spoken & jnp.any(said > 0, axis=1))[:, None], said, text)
        text = written(text)
        into, translation = batch['decoder_target_tokens'][:, 0], batch['decoder_target_tokens'][:, 1:]
        weights = (translation > 0) * (into != text[:, 0])[:, None].astype(jnp.float32)
        return Texts(
            text=text,
            into=into,
            translation=translation,
            weights=weights,
            spoken=spoken,
            transcribed=jnp.sum(text > 0, axis=1) > 2,
            translated=jnp.any(weights > 0, axis=1),
        )

    # ------------------------------------------------------------------ losses

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """The weighted losses, see `ComSlConfig`; `rng` decides the masked tokens, without it they are always the same.

        Metrics: each loss by its name, over its own number of tokens; `loss`; and `accuracy`, of the translation's
        tokens from speech.
        """
        key = jax.random.key(0)
        if rng is not None:
            key, rng = jax.random.split(rng)
        masked = mask_tokens(key, self._texts(batch).text, self.config.mask_rate)
        terms = self.terms(params, batch, masked, rng)
        total = sum((weight * terms[name][0] for name, weight in self.config.weights.items()), jnp.float32(0))
        tokens = jnp.maximum(terms.pop('tokens')[0], 1.0)
        if self.config.reference_quirks:
            tokens = jnp.ones_like(tokens)
        return total / tokens, terms | {'loss': (total, tokens)}

    def terms(
        self, params: Params, batch: Batch, masked: Bool[Array, 'b l'], rng: Key[Array, ''] | None
    ) -> dict[str, tuple[Float[Array, ''], Float[Array, '']]]:
        """(sum, tokens) of each loss that has a weight, of 'accuracy', and of 'tokens', the texts' number of them.

        Each pass is made once: one through the speech encoder and the adapter, up to three through the text model's
        encoder (speech, text, both), and one through its decoder for each loss but `erm`.

        Args:
            params, batch, rng: as `loss`.
            masked: which of the transcript's tokens are masked in the mixed pass.
        """
        texts, passes, config = self._texts(batch), _Passes(self, params, rng), self.config
        transcript, of_translation = texts.text[:, 1:], texts.weights
        of_text = (transcript > 0) * texts.transcribed[:, None].astype(jnp.float32)
        terms: dict[str, Any] = {name: (jnp.float32(0), jnp.float32(0)) for name in (*config.weights, 'accuracy')}
        terms['tokens'] = jnp.sum(of_text) + jnp.sum(of_translation), jnp.float32(1)

        said = None  # of the translation by the text pass
        if self._has('mt') or (self._has('st', 'st_mix') and config.ddm_alpha > 0):
            encoded, mask = passes.text(texts)
            said = passes.translation(texts, encoded, mask)
            if self._has('mt'):
                weights = of_translation * texts.transcribed[:, None]
                teacher = passes.teacher(texts) if self.teacher else None
                terms['mt'] = matched(said, teacher, texts.translation, weights, config.mt_distil_alpha)
            said = jax.lax.stop_gradient(said)
        # What no transcript teaches is learnt from the translation alone.
        alpha = config.ddm_alpha * texts.transcribed[:, None]
        spoken = texts.spoken[:, None]
        if batch.get('speech_frames', batch['speech_samples']).shape[1] == 0 or not self._has('asr', 'st', *_MIXED):
            return terms
        speech, lengths = passes.speech(batch, texts)
        if self._has('asr', 'st', 'erm'):
            encoded, mask, alone = passes.encoded_speech(speech, lengths)
            if self._has('asr'):
                logits = passes.transcript(texts, encoded, mask)
                terms['asr'] = matched(logits, None, transcript, of_text * spoken, 0.0)
            if self._has('st'):
                logits = passes.translation(texts, encoded, mask)
                terms['st'] = matched(logits, said, texts.translation, of_translation * spoken, alpha)
                right = jnp.argmax(logits, axis=-1) == texts.translation
                terms['accuracy'] = jnp.sum(right * of_translation * spoken), jnp.sum(of_translation * spoken)
        if self._has(*_MIXED):
            both = spoken & texts.transcribed[:, None]
            (text_half, text_mask), (speech_half, mask), beside = passes.mixed(speech, lengths, texts, masked)
            if self._has('asr_mix'):
                logits = passes.transcript(texts, speech_half, mask)
                terms['asr_mix'] = matched(logits, None, transcript, of_text * spoken, 0.0)
            if self._has('st_mix'):
                logits = passes.translation(texts, speech_half, mask)
                terms['st_mix'] = matched(logits, said, texts.translation, of_translation * both, alpha)
            if self._has('mtp'):
                logits = passes.transcript(texts, text_half, text_mask)
                terms['mtp'] = matched(logits, None, transcript, of_text * spoken * masked[:, 1:], 0.0)
            if self._has('erm'):
                valid = jnp.ones(speech.shape[:2], bool) if mask is None else mask & both
                terms['erm'] = unit_distance(alone, beside, valid)
        return terms

    # ------------------------------------------------------------------ answers

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens; see `System`. Where nothing is heard, nothing is written: see `unheard`."""
        prompt, mask, into = self._prompt(params, batch)
        return generate(self.llm, params['llm'], prompt, mask, decode, after=into)

    def begin(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Any:
        """See `System`."""
        prompt, mask, into = self._prompt(params, batch)
        return begin(self.llm, params['llm'], prompt, mask, decode, after=into)

    def proceed(self, params: Params, state: Any, decode: decoding.DecodeConfig, *more: Any) -> Any:
        """See `System`."""
        return proceed(self.llm, params['llm'], state, decode, *more)

    def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' b']:
        """Log-likelihood of each row's target as the answer; see `log_likelihood`."""
        prompt, mask, into = self._prompt(params, batch)
        passes = _Passes(self, params, None)
        targets = apart(batch)[1]
        logits = passes.decode('llm', _after(into, targets), passes.encode('llm', prompt, mask)[0], mask)
        scored = {'decoder_target_tokens': targets, 'decoder_loss_weights': (targets > 0).astype(jnp.float32)}
        return log_likelihood(logits, scored)

    def _prompt(
        self, params: Params, batch: Batch
    ) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p'], Int[Array, ' b']]:
        """What the text model reads of each row, speech or else its text, and the language to write in."""
        text, (into, _) = written(batch['encoder_input_tokens']), apart(batch)
        passes = _Passes(self, params, None)
        read, read_mask = passes.embed(text), text > 0
        if batch.get('speech_frames', batch['speech_samples']).shape[1] == 0:
            return read, read_mask, into
        spoken = batch['speech_lengths'] > 0
        speech, lengths = passes.heard(batch, text[:, 0])
        mask = jnp.arange(speech.shape[1]) < (lengths * ~unheard(batch, None, lengths - 1))[:, None]
        width = max(speech.shape[1], read.shape[1])
        speech, read = (jnp.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in (speech, read))
        mask, read_mask = (jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (mask, read_mask))
        prompt = jnp.where(spoken[:, None, None], speech, read)
        return prompt, jnp.where(spoken[:, None], mask, read_mask), into


class _Passes:
    """Passes through the parts; in training, each drops out by itself."""

    def __init__(self, system: ComSL, params: Params, rng: Key[Array, ''] | None):
        self._system, self._params, self._rng, self._made = system, params, rng, 0
        self._quirks = system.config.reference_quirks

    def _apply(self, module: Any, part: str, *args: Any, **kwargs: Any) -> Any:
        rngs = None
        if self._rng is not None:
            self._made += 1
            rngs = {'dropout': jax.random.fold_in(self._rng, self._made)}
        return module.apply({'params': self._params.get(part, {})}, *args, rngs=rngs, **kwargs)

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        embedded = self._apply(self._system.llm, 'llm', tokens, method='embed')
        if not self._quirks:
            return embedded
        return jnp.where((tokens > 0)[..., None], embedded, jax.lax.stop_gradient(embedded))  # as PyTorch's of padding

    def encode(self, part: str, x: Array, mask: Array | None, positions: Array | None = None) -> tuple[Array, Any]:
        """What the encoder of the text model, or of its teacher, gives; and hidden states where a loss reads them."""
        states = 'erm' in self._system.config.weights and part == 'llm'
        encoded = self._apply(
            self._system.llm, part, x, mask,
            deterministic=self._rng is None, positions=positions, hidden_states=states, method='encode',
        )  # fmt: skip
        return (encoded[0], encoded[1][self._system.config.erm_layer]) if states else (encoded, None)

    def decode(self, part: str, tokens: Int[Array, 'b t'], encoded: Array, mask: Array | None) -> Float[Array, 'b t v']:
        return self._apply(
            self._system.llm, part, tokens, encoded, mask, deterministic=self._rng is None, method='decode'
        )

    def heard(self, batch: Batch, lang: Int[Array, ' b']) -> tuple[Float[Array, 'b s e'], Int[Array, ' b']]:
        """Speech as the text model reads it, the vector of its language first, and the number of its vectors."""
        samples, lengths = batch['speech_samples'], batch['speech_lengths']
        if self._quirks:
            assert self._system.max_seconds, "what recordings are filled up to, as in the authors' code"
            longest = round(16_000 * self._system.max_seconds)
            samples = jnp.pad(samples, ((0, 0), (0, longest - samples.shape[1])))
            lengths = jnp.full_like(lengths, longest)
        deterministic = self._rng is None
        frames = self._apply(
            self._system.speech_encoder, 'speech_encoder', samples, lengths, deterministic, **stored(batch)
        )
        adapted, lengths = self._apply(self._system.adapter, 'adapter', *frames, deterministic)
        named = self.embed(lang[:, None])
        return jnp.concatenate([named, adapted.astype(named.dtype)], axis=1), lengths + 1

    def speech(self, batch: Batch, texts: Texts) -> tuple[Float[Array, 'b s e'], Int[Array, ' b']]:
        """`heard`, of length 0 in rows without speech."""
        speech, lengths = self.heard(batch, texts.text[:, 0])
        return speech, jnp.where(texts.spoken, lengths, 0)

    def encoded_speech(self, speech: Array, lengths: Array) -> tuple[Array, Array | None, Any]:
        """The encoder's pass over speech: its output, mask, and hidden states."""
        mask = None if self._quirks else jnp.arange(speech.shape[1]) < lengths[:, None]
        encoded, states = self.encode('llm', speech, mask)
        return self._doubled(encoded), mask, states

    def text(self, texts: Texts) -> tuple[Array, Array | None]:
        """The encoder's pass over the transcript: its output and mask."""
        mask = None if self._quirks else texts.text > 0
        return self._doubled(self.encode('llm', self.embed(texts.text), mask)[0]), mask

    def mixed(self, speech: Array, lengths: Array, texts: Texts, masked: Bool[Array, 'b l']) -> tuple[Any, Any, Any]:
        """The encoder's pass over the masked transcript and the speech: (output, mask) of both halves, hidden states.

        Speech takes the positions behind the transcript's own length: padding between them takes none.
        """
        width = texts.text.shape[1]
        masked_text = self.embed(jnp.where(masked, self._system.config.mask_token, texts.text))
        joined = jnp.concatenate([masked_text, speech], axis=1)
        text_mask = speech_mask = mask = positions = None
        if not self._quirks:
            text_mask, speech_mask = texts.text > 0, jnp.arange(speech.shape[1]) < lengths[:, None]
            mask = jnp.concatenate([text_mask, speech_mask], axis=1)
            text_place = jnp.broadcast_to(jnp.arange(width), text_mask.shape)
            speech_place = jnp.sum(text_mask, axis=1)[:, None] + jnp.arange(speech.shape[1])
            positions = jnp.concatenate([text_place, speech_place], axis=1)
        encoded, states = self.encode('llm', joined, mask, positions)
        halves = (encoded[:, :width], text_mask), (encoded[:, width:], speech_mask)
        return *halves, None if states is None else states[:, width:]

    def transcript(self, texts: Texts, encoded: Array, mask: Array | None) -> Float[Array, 'b l v']:
        """Logits of the transcript: of what follows each of its tokens but the last."""
        return self.decode('llm', texts.text[:, :-1], encoded, mask)

    def translation(self, texts: Texts, encoded: Array, mask: Array | None, part: str = 'llm') -> Float[Array, 'b t v']:
        """Logits of the translation."""
        return self.decode(part, _after(texts.into, texts.translation), encoded, mask)

    def teacher(self, texts: Texts) -> Float[Array, 'b t v']:
        """What the frozen text model says of the translation."""
        still = _Passes(self._system, jax.lax.stop_gradient({'teacher': self._params['teacher']}), None)
        mask = None if self._quirks else texts.text > 0
        embedded = still._apply(self._system.llm, 'teacher', texts.text, method='embed')
        encoded = still.encode('teacher', embedded, mask)[0]
        return jax.lax.stop_gradient(still.translation(texts, encoded, mask, 'teacher'))

    def _doubled(self, encoded: Array) -> Array:
        """The same, its gradient twice as large where the authors' is."""
        return 2 * encoded - jax.lax.stop_gradient(encoded) if self._quirks else encoded


def written(tokens: Int[Array, 'b l']) -> Int[Array, 'b l']:
    """A prompt without the mark of speech, and without all that is behind the mark."""
    return jnp.where(jnp.cumsum(tokens == SPEECH, axis=1) > 0, 0, tokens)


def apart(batch: Mapping[str, Any]) -> tuple[Int[Array, ' b'], Int[Array, 'b t']]:
    """The code of the language to write in, and the target tokens without it."""
    targets = batch['decoder_target_tokens']
    into = batch.get('first_tokens', targets[:, 0])
    begins = (into == targets[:, 0])[:, None]
    return into, jnp.where(begins, jnp.pad(targets[:, 1:], ((0, 0), (0, 1))), targets)


def _after(first: Int[Array, ' b'], targets: Int[Array, 'b t']) -> Int[Array, 'b t']:
    """What a decoder reads to write targets: their language, then they themselves."""
    return jnp.concatenate([first[:, None], targets[:, :-1]], axis=1)
