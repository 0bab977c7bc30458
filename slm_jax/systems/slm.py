"""SLM (arXiv 2310.00230): a frozen speech encoder and a frozen LLM joined by an adapter, trained on cross-entropy."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from slm_jax import decoding
from slm_jax.llms import t5
from slm_jax.systems import Batch, Metrics, Params
from slm_jax.systems.text_to_text import generate, initial_params, token_loss

_EOS = 1


@dataclasses.dataclass(frozen=True)
class SLM:
    """Adapted speech and the instruction's token embeddings stand side by side in the LLM's encoder.

    `speech_first` puts the audio before the instruction, which AlignFormer (2412.01145) found better to follow
    instructions; the SLM paper does not say.

    `label_tokens`, the LLM's token for each label of the encoder's CTC head (-1: it has none; the first, blank's, is the
    one with which a text begins), lets the adapter start from the embeddings of what CTC writes; see `SlmAdapter`.

    `token_labels`, the label of each of the LLM's tokens, lets both write a transcript together where
    `DecodeConfig.ctc_weight` is not 0; see `decoding.with_ctc`.

    `transcript_request`, the tokens that ask for a transcript, lets it write one first where something else is asked
    and `DecodeConfig.transcript_weight` is not 0, and answer that too: a chain of modalities, as in SpeechGPT
    (2305.11000) and AudioPaLM's combined tasks (2306.12925).
    """

    speech_encoder: nn.Module
    adapter: nn.Module
    llm: t5.T5
    speech_first: bool = True
    label_smoothing: float = 0.0
    label_tokens: tuple[int, ...] | None = None
    token_labels: tuple[int, ...] | None = None
    transcript_request: tuple[int, ...] | None = None

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters of the three parts; see `System`."""
        speech_rng, adapter_rng, llm_rng = jax.random.split(rng, 3)
        samples, lengths = batch['speech_samples'], batch['speech_lengths']
        if samples.shape[1] == 0:  # a text-only batch says nothing of the speech parts
            samples = jnp.zeros((samples.shape[0], 16_000), samples.dtype)
        heard, speech = self.speech_encoder.init_with_output(speech_rng, samples, lengths)
        llm = initial_params(self.llm, llm_rng)
        labels = self._label_embeddings(llm)
        return {
            'speech_encoder': speech['params'],
            'adapter': self.adapter.init(adapter_rng, *heard, label_embeddings=labels)['params'],
            'llm': llm,
        }

    def _label_embeddings(self, llm: Params) -> Float[Array, 'v e'] | None:
        if self.label_tokens is None:
            return None
        tokens = jnp.array(self.label_tokens)
        embeddings = self.llm.apply({'params': llm}, jnp.maximum(tokens, 0), method='embed')
        return jnp.where(tokens[:, None] >= 0, embeddings, 0.0)

    def _listen(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> dict[str, Array]:
        """`speech` [b s e] as the LLM reads it, `speech_lengths`, `ctc_logits`, `frame_lengths`; {} without speech."""
        if batch['speech_samples'].shape[1] == 0:
            return {}
        rngs = None if rng is None else {'dropout': rng}
        frames, frame_lengths, ctc_logits = self.speech_encoder.apply(
            {'params': params['speech_encoder']},
            batch['speech_samples'],
            batch['speech_lengths'],
            rng is None,
            rngs=rngs,
        )
        speech, speech_lengths = self.adapter.apply(
            {'params': params['adapter']},
            frames,
            frame_lengths,
            ctc_logits,
            rng is None,
            self._label_embeddings(params['llm']),
            rngs=rngs,
        )
        heard = {'speech': speech, 'speech_lengths': speech_lengths}
        return heard | {'ctc_logits': ctc_logits, 'frame_lengths': frame_lengths}

    def _encode(
        self, params: Params, tokens: Int[Array, 'b t'], heard: Mapping[str, Array], rng: Key[Array, ''] | None = None
    ) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p']]:
        """What the LLM's encoder makes of speech (as `_listen` gives it) and text, without a gap between them."""
        llm = {'params': params['llm']}
        prompt, mask = self.llm.apply(llm, tokens, method='embed'), tokens > 0
        if heard:
            speech, text = heard['speech'].astype(prompt.dtype), prompt
            speech_lengths, text_lengths = heard['speech_lengths'], jnp.sum(mask, axis=1)
            first, second = (speech, text) if self.speech_first else (text, speech)
            first_length = speech_lengths if self.speech_first else text_lengths
            place = jnp.arange(speech.shape[1] + text.shape[1])
            source = jnp.where(place < first_length[:, None], place, first.shape[1] + place - first_length[:, None])
            prompt = jnp.concatenate([first, second], axis=1)
            prompt = jnp.take_along_axis(prompt, source[..., None], axis=1, mode='clip')
            mask = place < (speech_lengths + text_lengths)[:, None]
        rngs = None if rng is None else {'dropout': rng}
        return self.llm.apply(llm, prompt, mask, rng is None, rngs=rngs, method='encode'), mask

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Cross-entropy of the decoder's tokens; also the accuracy and `speech_text_cosine`, between the mean
        adapted speech embedding of a clip and the mean embedding of its target tokens."""
        heard = self._listen(params, batch, rng)
        encoded, mask = self._encode(params, batch['encoder_input_tokens'], heard, rng)
        logits = self.llm.apply(
            {'params': params['llm']},
            encoded,
            mask,
            batch['decoder_input_tokens'],
            batch['decoder_target_tokens'],
            rng is None,
            rngs=None if rng is None else {'dropout': rng},
            method='decode',
        )
        loss, metrics = token_loss(logits, batch, self.label_smoothing)
        if heard:
            targets = self.llm.apply({'params': params['llm']}, batch['decoder_target_tokens'], method='embed')
            target_lengths = jnp.sum(batch['decoder_target_tokens'] > 0, axis=1)
            cosine = _cosine(_mean(heard['speech'], heard['speech_lengths']), _mean(targets, target_lengths))
            spoken = (heard['speech_lengths'] > 0).astype(jnp.float32)
            metrics['speech_text_cosine'] = jnp.sum(cosine * spoken), jnp.sum(spoken)
        return loss, metrics

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens; see `System`. Of a batch with `transcribed` [batch], only these rows are transcripts: written
        with CTC, and not by way of another (`DecodeConfig.transcript_weight`)."""
        heard, tokens = self._listen(params, batch, None), batch['encoder_input_tokens']
        encoded, mask = self._encode(params, tokens, heard)
        if not heard:
            return generate(self.llm, params['llm'], encoded, mask, decode)
        transcribed = jnp.broadcast_to(batch.get('transcribed', True), tokens.shape[:1])
        if not decode.transcript_weight:
            return generate(self.llm, params['llm'], encoded, mask, decode, self._ctc(heard, decode, transcribed))
        if self.transcript_request is None:
            raise ValueError(
                f'DecodeConfig.transcript_weight is {decode.transcript_weight}, which needs SLM.transcript_request, the '
                'tokens that ask for a transcript (as in models/slm_tiny.gin); use 0 to answer the speech alone.'
            )
        request = jnp.array(self.transcript_request)
        answered = ~transcribed & (heard['speech_lengths'] > 0)
        width = max(request.size, tokens.shape[1])
        asked = jnp.where(
            answered[:, None],
            jnp.pad(request, (0, width - request.size)),
            jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1]))),
        )
        ctc = self._ctc(heard, decode, transcribed | answered)
        written = generate(self.llm, params['llm'], *self._encode(params, asked, heard), decode, ctc)
        said = jnp.where(written == _EOS, 0, written)
        said = {
            'speech': self.llm.apply({'params': params['llm']}, said, method='embed'),
            'speech_lengths': jnp.sum(said > 0, axis=1),
        }
        read, read_mask = self._encode(params, tokens, said)
        also = (read, read_mask & answered[:, None], decode.transcript_weight)
        answers = generate(self.llm, params['llm'], encoded, mask & answered[:, None], decode, also=also)
        return jnp.where(answered[:, None], answers, written)

    def _ctc(
        self, heard: Mapping[str, Array], decode: decoding.DecodeConfig, rows: Bool[Array, 'b']
    ) -> dict[str, Array] | None:
        """What `decoding.with_ctc` needs to write these rows."""
        if not decode.ctc_weight:
            return None
        if self.token_labels is None or heard['ctc_logits'] is None:
            raise ValueError(
                f'DecodeConfig.ctc_weight is {decode.ctc_weight}, which needs a speech encoder with a CTC head, a '
                'language model that writes single characters, and SLM.token_labels (as in models/slm_tiny.gin); '
                'use 0 to let the language model write alone.'
            )
        unlabelled = self.llm.config.vocab_size - len(self.token_labels)  # embeddings without a token: never written
        if unlabelled < 0:
            raise ValueError(
                f'SLM.token_labels are of {len(self.token_labels)} tokens and the language model has '
                f'{self.llm.config.vocab_size}: they are of another tokenizer (vocabularies.names.llm).'
            )
        return {
            'ctc_logits': heard['ctc_logits'],
            'frame_lengths': jnp.where(rows, heard['frame_lengths'], 0),
            'token_labels': jnp.pad(jnp.array(self.token_labels), (0, unlabelled)),
        }


def _mean(embeddings: Float[Array, 'b l e'], lengths: Int[Array, 'b']) -> Float[Array, 'b e']:
    valid = jnp.arange(embeddings.shape[1]) < lengths[:, None]
    total = jnp.sum(jnp.where(valid[..., None], embeddings, 0.0), axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]


def _cosine(a: Float[Array, 'b e'], b: Float[Array, 'b e']) -> Float[Array, 'b']:
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-9)
