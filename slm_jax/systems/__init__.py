"""Systems: one file per paper or pretraining objective. Each composes parts and states its loss.

`training` and `evaluation` see a system only by this protocol. A batch is the dictionary that
`slm_jax.data.feature_converter` makes; `params` is a nested dictionary with one entry per part
(`speech_encoder`, `adapter`, `llm`).
"""

from typing import Any, Protocol

from jaxtyping import Array, Float, Int, Key

from slm_jax.decoding import DecodeConfig

Batch = dict[str, Array]
Params = dict[str, Any]
Metrics = dict[str, tuple[Float[Array, ''], Float[Array, '']]]


class System(Protocol):
    """What a program needs of a model.

    One whose speech encoder takes only so much audio at once says so: `max_seconds`. One whose loss has one of its
    parts as a teacher names it: `teacher`. That part has to be frozen, and the batch has `teacher_input_tokens`.
    Where answers read other parts than the losses do, `answering` is the system that gives them.
    One whose other losses read the transcripts says so: `reads_transcripts`; the batch has them likewise.
    One whose losses need examples of some kind has `check_data(batch)`, which is given some examples of each task, of
    recordings their lengths alone, before the first step, and raises a ValueError if a loss has none.
    One that draws fresh parameters like those of a foundation has `check_fresh(paths)`, which is given the paths of
    all that are fresh and raises a ValueError where that cannot be.
    One that reads when each token of a transcript ends says so, `token_ends`: the batch has `token_ends`, too.
    One without a language model that writes the tokens of one says so: `writes_llm_tokens`.
    One that reads only some of its parameters gives patterns of them: `reads`, see `training.state.read`.
    One with a language model says how likely a text is as an answer: `score_batch`, see `SLM`.
    One that takes several recordings in a prompt gives the embeddings of one, and how many there are, `listen(params,
    batch)`, see `spoken_prompt`; one that takes longer ones in pieces says how long these are, in seconds: `piece`.
    One that cannot answer, as its aligner needs the transcript, says so: `answers` is False; training shows no samples.
    One that says how likely what is heard is, and how many tokens that are: `score_speech`, see `SSR`.
    One that can write its answers some tokens at a time says so, `in_steps`, and has `begin(params, batch, decode)` and
    `proceed(params, state, decode, steps, gone)`, see `text_to_text`; what they write is what `predict` does.
    """

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters, boxed with the logical names of their axes."""

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Loss, normalised over the global batch, and sums with their weights. Without `rng`: no dropout, no masks."""

    def predict(self, params: Params, batch: Batch, decode: DecodeConfig) -> Int[Array, 'b l']:
        """Generated tokens, 0 after the end."""
