"""When each word of a transcript is said: by the model's own CTC head, or by what its language model looks at."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from slm_jax.data import ctc_text
from slm_jax.inference import attended, chunks

_MULTIPLE = 64  # of labels, so that few shapes are compiled
_ANY = -1
_NONE = -1  # the word that a sound between two of them belongs to
_EOS = 1
# CTC writes a letter within its sound, so half of the gap before its first letter is a word's, up to so many seconds.
_EARLIER = 0.08
_LINES = 84  # letters of a cue: two lines of 42
_LONGEST = 7.0  # seconds of a cue
_PAUSE = 0.8  # seconds after which another cue begins


class Word(NamedTuple):
    """A word as it is written, with its punctuation, and when it is said, in seconds."""

    text: str
    start: float
    end: float

    def later(self, seconds: float) -> 'Word':
        """The same in a recording that begins so much earlier."""
        return Word(self.text, round(self.start + seconds, 3), round(self.end + seconds, 3))

    @property
    def line(self) -> dict[str, str | float]:
        """As JSON has it."""
        return {'word': self.text, 'start': self.start, 'end': self.end}


class Aligner(Protocol):
    """Finds the words of a model's transcripts."""

    def words(self, batch: Mapping[str, np.ndarray], texts: Sequence[str]) -> list[list[Word]]:
        """The words of the texts of a batch's first rows; [] where a clip is too short to have said them."""


def aligner(model: Any) -> Aligner:
    """By CTC where there is a head for it, else by attention.

    Args:
        model: see `slm_jax.inference.model`.

    Raises:
        ValueError: it has neither.
    """
    system = model.system
    of_encoder = getattr(getattr(system, 'speech_encoder', None), 'ctc_vocab_size', None)
    of_tokens = (getattr(system, name, None) for name in ('spelt', 'spelling'))
    if of_encoder is not None or any(each is not None for each in of_tokens):
        return CtcAligner(model)
    if hasattr(getattr(system, 'adapter', None), 'spans'):
        return AttentionAligner(model)
    raise ValueError(
        f'{model.directory.name} has no CTC head, and no adapter with `spans`, which tell when words are said. Give '
        '--model one that has: slm_base, slm_tiny or usm_tiny, or one that was trained with their model files.'
    )


class CtcAligner:
    """By the CTC head of the adapter, of an aligner or of the speech encoder; see `alignment`.

    Args:
        model: one that has such a head.
    """

    def __init__(self, model: Any):
        spelling = getattr(model.system, 'spelling', None)
        self._model, self._between = model, spelling.between if spelling else 0
        self._spelt = spelling.table if spelling else getattr(model.system, 'spelt', None)

    def words(self, batch: Mapping[str, np.ndarray], texts: Sequence[str]) -> list[list[Word]]:
        """See `Aligner`."""
        from slm_jax.training import partitioning

        split = [text.split() for text in texts]
        spelt = [list(self._labels(words)) for words in split]
        longest = max(map(len, spelt), default=0)
        labels = np.zeros((len(batch['speech_lengths']), -(-max(longest, 1) // _MULTIPLE) * _MULTIPLE), np.int32)
        for row, found in enumerate(spelt):
            labels[row, : len(found)] = [label for _, label in found]
        rows = partitioning.host_rows(self._model.mesh, len(labels))
        whole = {**batch, 'labels': labels}
        given = partitioning.shard_batch({name: array[rows] for name, array in whole.items()}, self._model.mesh)
        times = np.asarray(self._times(self._model.params, given))
        return [list(_timed(*row)) for row in zip(split, spelt, *times)]

    @functools.cached_property
    def _times(self) -> Any:
        import jax

        from slm_jax.training import partitioning

        def times(params, batch):
            return self._model.system.times(params, batch, batch['labels'])

        return jax.jit(times, out_shardings=partitioning.replicated(self._model.mesh))

    def _labels(self, words: Sequence[str]) -> Iterator[tuple[int, int]]:
        """(number of the word, label); what is heard between two words belongs to none."""
        from slm_jax.data import vocabularies

        if self._spelt is not None:
            vocabulary, before = self._model.text_vocabulary or self._model.vocabulary, self._between
            for number, word in enumerate(words):
                tokens = vocabulary.encode(f' {word}' if number else word)
                for label in (label for token in tokens for label in self._spelt[token].tolist() if label):
                    if label != self._between:
                        yield number, label
                    elif before != label:
                        yield _NONE, label
                    before = label
            return
        tokenizer, heard = vocabularies.of('speech_encoder').tokenizer, False
        between = tokenizer.piece_to_id('▁')
        for number, word in enumerate(words):
            labels = tokenizer.encode(ctc_text.normalize(word))
            labels = labels[1:] if labels[:1] == [between] else labels  # some tokenizers begin a text with it
            if labels and heard:
                yield _NONE, between
            heard |= bool(labels)
            yield from ((number, _ANY if label == tokenizer.unk_id() else label) for label in labels)


class AttentionAligner:
    """By the attention of the language model to the speech; see `attended`.

    Args:
        model: one of a system with `attention` and whose adapter has `spans`.
    """

    def __init__(self, model: Any):
        self._model = model

    def words(self, batch: Mapping[str, np.ndarray], texts: Sequence[str]) -> list[list[Word]]:
        """See `Aligner`; the batch has the prompts that the texts are answers to."""
        from slm_jax.training import partitioning

        split = [text.split() for text in texts]
        spelt = [list(self._tokens(words)) for words in split]
        # What an answer has to begin with, such as its language's code, is no word.
        begun = [[int(first)] * bool(first) for first in batch.get('first_tokens', [0] * len(spelt))[: len(spelt)]]
        longest = max(map(len, spelt), default=0) + max(map(len, begun), default=0) + 1
        targets = np.zeros((len(batch['speech_lengths']), -(-longest // _MULTIPLE) * _MULTIPLE), np.int32)
        for number, (first, found) in enumerate(zip(begun, spelt)):
            written = [*first, *(token for _, token in found), _EOS]
            targets[number, : len(written)] = written
        inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        given = self._model.placed({**batch, 'decoder_input_tokens': inputs, 'decoder_target_tokens': targets})
        out = partitioning.replicated(self._model.mesh)
        program = self._model.program('attention', self._model.system.attention, given, out=out)
        weights, spans, lengths = map(np.asarray, program(self._model.params, given))
        result: list[list[Word]] = []
        for row, (words, first, found) in enumerate(zip(split, begun, spelt)):
            tokens, length = slice(len(first), len(first) + len(found) + 1), lengths[row]
            if not (found and length):
                result.append([])
                continue
            starts, stops = attended.times(weights[:, row, tokens, :length], spans[:, row, :length])
            result.append([*_timed(words, found, starts, stops)])
        return result

    def _tokens(self, words: Sequence[str]) -> Iterator[tuple[int, int]]:
        """(number of the word, token); a space that is a token of its own belongs to none."""
        vocabulary = self._model.text_vocabulary
        for number, word in enumerate(words):
            for token in vocabulary.encode(f' {word}' if number else word):
                yield number if vocabulary.decode([token]).strip() else _NONE, token


def _timed(
    words: Sequence[str], spelt: Sequence[tuple[int, int]], starts: np.ndarray, stops: np.ndarray
) -> Iterator[Word]:
    """Words with their times; one of which nothing is heard, as a dash, is where the one before it ends."""
    owner, count = np.array([number for number, _ in spelt], int), len(spelt)
    starts, stops = starts[:count], stops[:count]
    if np.isnan(starts).any():
        return
    last = 0.0
    for number, word in enumerate(words):
        mine = owner == number
        start = last
        if mine.any():
            first = starts[mine].min()
            start, last = first - min(_EARLIER, (first - last) / 2), stops[mine].max()
        yield Word(word, round(float(start), 3), round(float(last), 3))


def subtitles(pieces: Sequence[chunks.Chunk], said: Sequence[Sequence[Word]]) -> list[chunks.Chunk]:
    """Pieces of a recording as subtitles: `cues` of their words, or the piece where these have no times.

    Args:
        pieces: with their texts.
        said: the words of each, from the start of its piece.
    """
    result: list[chunks.Chunk] = []
    run: list[Word] = []
    for piece, words in zip(pieces, said, strict=True):
        run += [word.later(piece.start) for word in words]
        if not words:
            result += [*cues(run), piece]
            run = []
    return result + cues(run)


def cues(words: Sequence[Word]) -> list[chunks.Chunk]:
    """Words as subtitles: of two lines and seven seconds at most, anew after a pause, ending with a sentence."""
    groups: list[list[Word]] = []
    for word in words:
        group = groups[-1] if groups else []
        text = ' '.join(each.text for each in [*group, word])
        sentence = group and group[-1].text[-1] in '.?!…。？！'
        if not group or sentence or len(text) > _LINES or word.end - group[0].start > _LONGEST:
            groups.append([word])
        elif word.start - group[-1].end > _PAUSE:
            groups.append([word])
        else:
            group.append(word)
    return [
        chunks.Chunk(group[0].start, group[-1].end, ' '.join(word.text for word in group)) for group in groups if group
    ]
