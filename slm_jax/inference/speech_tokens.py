"""What a CTC head, the adapter's own or the speech encoder's, hears at what time: its labels, as they are likeliest."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int16

from slm_jax.data import vocabularies
from slm_jax.foundations import tokenizers
from slm_jax.inference import queries


class Token(NamedTuple):
    """A label that is the likeliest of some frames in a row.

    Attributes:
        text: its piece; a space where a word begins.
        start, end: in seconds.
        probability: at the frame that is surest of it.
    """

    text: str
    start: float
    end: float
    probability: float


def are_known(model: Any) -> bool:
    """Whether the model has a CTC head."""
    system = model.system
    speech = getattr(system, 'speech_encoder', None)
    return bool(getattr(system, 'ctc_tokens', None)) or getattr(speech, 'ctc_vocab_size', None) is not None


def heard(model: Any, samples: Int16[np.ndarray, ' n']) -> list[Token]:
    """The tokens of a recording, in order.

    Args:
        model: see `slm_jax.inference.model`; one whose tokens `are_known`.
        samples: no longer than it takes at once.
    """
    import jax
    import jax.numpy as jnp

    from slm_jax.training import partitioning

    def likeliest(params, batch):
        logits, lengths = model.system.ctc_logits(params, batch)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        return jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1), lengths

    query = queries.Query((), samples)
    shape = queries.shape_of(query, model.encoder_seconds)
    given = model.placed(queries.batch_of([query], shape, model.row_multiple))
    program = model.program('speech_tokens', likeliest, given, out=partitioning.replicated(model.mesh))
    labels, probabilities, lengths = (np.asarray(found)[0] for found in program(model.params, given))
    frame = len(samples) / queries.SAMPLE_RATE / max(int(lengths), 1)
    tokens, first = [], 0
    for label, run in itertools.groupby(labels[:lengths].tolist()):
        last = first + len(list(run))
        if label:
            sure = float(probabilities[first:last].max())
            tokens.append(Token(_text(model, label), round(first * frame, 3), round(last * frame, 3), round(sure, 4)))
        first = last
    return tokens


def _text(model: Any, label: int) -> str:
    """The piece of a label."""
    own = getattr(model.system, 'ctc_tokens', None)
    of_encoder = own is None and model.text_vocabulary is not None
    vocabulary = vocabularies.of('speech_encoder') if of_encoder else model.vocabulary
    token = label if own is None else own[label]
    if isinstance(vocabulary, tokenizers.SentencePiece):
        return vocabulary.tokenizer.id_to_piece(token).replace('▁', ' ')
    return vocabulary.decode([token])
