"""What is put to a model, and how many such queries become batches of few static shapes."""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int16

from slm_jax import paths
from slm_jax.data import phrases, prompts
from slm_jax.inference import interleaved, references

SAMPLE_RATE = 16000
_TOKEN_MULTIPLE = 32
_TARGET_MULTIPLE = 16
_MAX_ROWS = 64
TOKENS_PER_SECOND = 40  # a text of so many tokens costs about what a second of audio does


@dataclasses.dataclass(frozen=True)
class Query:
    """One thing to put to a model.

    Attributes:
        tokens: ids of the prompt, see `prompts.Prompt.tokens`.
        samples: int16 at 16 kHz; None for text alone.
        info: fields of the line in predictions.jsonl that this becomes (see `metrics`).
        transcribed: whether a transcript is asked for, which the CTC head may take part in.
        target: ids of an answer whose likelihood is asked for, `first` before them; () where one is to be written.
        first: token with which the answer begins: the code of its language, for a language model that has such; 0: the
            model chooses.
        recordings: of a prompt with several, how many of the samples each has; () of one.
        heard: samples of each of the choices, where these are recordings whose likelihood is asked for.
    """

    tokens: tuple[int, ...]
    samples: Int16[np.ndarray, ' n'] | None = None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    transcribed: bool = False
    target: tuple[int, ...] = ()
    first: int = 0
    recordings: tuple[int, ...] = ()
    heard: tuple[Int16[np.ndarray, ' n'], ...] = ()

    def with_target(self, target: tuple[int, ...]) -> 'Query':
        """The same with a target, after `first`, which is given and not scored."""
        return dataclasses.replace(self, target=((self.first,) if self.first else ()) + target)


def seconds_bound(seconds: float, fine: bool = False) -> float:
    """The shape that a length falls into: 2, 4, 8, 16 … seconds; 0 for none.

    `fine`: 1, 1.5, 2, 3, 4, 6, 8, 12 … seconds, half the padding for twice the compilations.
    """
    if seconds <= 0:
        return 0.0
    bound = 1.0 if fine else 2.0
    while bound < seconds:
        bound *= 2
    return bound * 0.75 if fine and bound > 1 and seconds <= bound * 0.75 else bound


def shape_of(query: Query, longest: float | None = None) -> tuple[float, int]:
    """The shape that a query falls into where few shapes are to do for all; `longest` as in `batched`."""
    seconds = seconds_bound(0 if query.samples is None else len(query.samples) / SAMPLE_RATE)
    tokens = _TOKEN_MULTIPLE
    while tokens < len(query.tokens):
        tokens *= 2
    return seconds if longest is None else min(seconds, longest), tokens


def batched(
    queries: Iterable[Query],
    seconds_per_batch: float = 60.0,
    row_multiple: int = 1,
    fine: bool = False,
    longest: float | None = None,
    computed: float = 0.0,
) -> Iterator[tuple[list[tuple[int, Query]], dict[str, np.ndarray]]]:
    """Groups queries of like length; only what makes up unfinished batches is held in memory.

    Args:
        queries: any number of them, read as they are needed.
        seconds_per_batch: seconds of padded audio in a batch.
        row_multiple: rows of every batch are a multiple of it: the data-parallel size.
        fine: see `seconds_bound`; pays where there are thousands.
        longest: seconds that the speech encoder takes at once; no query is padded beyond.
        computed: seconds that it computes at least, however short a clip is; rows are counted by that.

    Yields:
        (the batch's queries with their places in `queries`, the batch). A shape occurs with one
        number of rows, and for what is left in the end with at most one smaller number.
    """
    waiting: dict[tuple[float, int, int], list[tuple[int, Query]]] = {}
    used = set()

    def rows_of(shape):
        bound, tokens, targets = shape
        rows = seconds_per_batch / max(bound, computed) if bound else _MAX_ROWS
        rows = min(rows, TOKENS_PER_SECOND * seconds_per_batch / (tokens + targets), _MAX_ROWS)
        return max(int(rows) // row_multiple, 1) * row_multiple

    for position, query in enumerate(queries):
        samples = 0 if query.samples is None else len(query.samples)
        tokens = -(-max(len(query.tokens), 1) // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE
        bound = seconds_bound(samples / SAMPLE_RATE, fine)
        targets = -(-len(query.target) // _TARGET_MULTIPLE) * _TARGET_MULTIPLE
        shape = bound if longest is None else min(bound, longest), tokens, targets
        group = waiting.setdefault(shape, [])
        group.append((position, query))
        if len(group) == rows_of(shape):
            yield group, batch_of([query for _, query in group], shape[:2], len(group), shape[2])
            used.add(shape)
            del waiting[shape]
    for shape, group in waiting.items():
        rows = rows_of(shape)
        if shape not in used:  # A shape that is compiled already costs less than a smaller new one.
            rows = min(rows, -(-(1 << (len(group) - 1).bit_length()) // row_multiple) * row_multiple)
        yield group, batch_of([query for _, query in group], shape[:2], rows, shape[2])


def batch_of(group: Sequence[Query], shape: tuple[float, int], rows: int, targets: int = 0) -> dict[str, np.ndarray]:
    """The batch of a group of queries, filled up to `rows`, and each to a shape: (seconds, tokens of the prompt).

    `targets` is the same of theirs, 0 where answers are to be written.
    """
    bound, tokens = shape
    targets = targets or 8  # the batch contract wants some
    batch: dict[str, np.ndarray] = {
        'speech_samples': np.zeros((rows, round(bound * SAMPLE_RATE)), np.int16),
        'speech_lengths': np.zeros(rows, np.int32),
        'encoder_input_tokens': np.zeros((rows, tokens), np.int32),
        'decoder_input_tokens': np.zeros((rows, targets), np.int32),
        'decoder_target_tokens': np.zeros((rows, targets), np.int32),
        'decoder_loss_weights': np.zeros((rows, targets), np.float32),
        'transcribed': np.zeros(rows, bool),
    }
    if any(query.first for query in group):
        batch['first_tokens'] = np.array([query.first for query in group] + [0] * (rows - len(group)), np.int32)
    for row, query in enumerate(group):
        if query.samples is not None:
            batch['speech_samples'][row, : len(query.samples)] = query.samples
            batch['speech_lengths'][row] = len(query.samples)
        batch['encoder_input_tokens'][row, : len(query.tokens)] = query.tokens
        batch['decoder_input_tokens'][row, 1 : len(query.target)] = query.target[:-1]
        batch['decoder_target_tokens'][row, : len(query.target)] = query.target
        batch['decoder_loss_weights'][row, bool(query.first) : len(query.target)] = 1.0
        batch['transcribed'][row] = query.transcribed
    if any(query.recordings for query in group):
        batch['recording_lengths'] = np.zeros((rows, max(len(query.recordings or (0,)) for query in group)), np.int32)
        for row, query in enumerate(group):
            each = query.recordings or (batch['speech_lengths'][row],)
            batch['recording_lengths'][row, : len(each)] = each
    return batch


def checked(
    queries: Iterable[Query], check: Callable[[Query], None], on_bad: Callable[[str], None] | None
) -> Iterator[Query]:
    """The queries that `check` raises no ValueError for; `on_bad` as in `from_manifest`."""
    for query in queries:
        try:
            check(query)
        except ValueError as error:
            if on_bad is None:
                raise
            on_bad(str(error))
        else:
            yield query


def from_loader(loader: Any, vocabulary: Any) -> Iterator[Query]:
    """The examples of a `SpeechTextLoader`, each once.

    Args:
        loader: its `examples()` is read.
        vocabulary: that of the outputs, for tasks that keep no text of their targets.
    """
    from slm_jax.data import instructions

    for batch, infos in loader.examples():
        for row, info in enumerate(infos):
            if info is None:
                continue
            tokens = batch['encoder_input_tokens'][row]
            targets = batch['decoder_target_tokens'][row]
            length = int(batch['speech_lengths'][row])
            yield Query(
                tokens=tuple(tokens[tokens != 0].tolist()),
                samples=batch['speech_samples'][row, :length].copy() if length else None,
                info=_present(
                    id=info.id,
                    task=info.task,
                    lang=info.lang,
                    target_lang=info.target_lang,
                    instruction=info.instruction,
                    reference=info.reference or vocabulary.decode(targets[targets != 0].tolist()),
                    duration=round(info.seconds, 3),
                    audio=info.audio,
                    offset=info.offset,
                    phrases=info.phrases,
                ),
                transcribed=instructions.transcribes(info.instruction),
                first=int(targets[0]) if getattr(vocabulary, 'languages', None) else 0,
            )


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of each line of a manifest.

    Attributes:
        instruction: may hold {language} and {target_language}; '' takes the line's own, or asks for
            a transcription.
        target_lang: code of the language to answer in: the reference is that translation.
        slot: name of the slot asked for: the reference is that slot's value, or 'none'.
        reference_field: field of the line that holds the reference ('slots.size' looks inside), or a list of accepted
            answers.
        text_field: field whose text stands in the place of speech; '' listens to the recording.
        answered: whether the reference is an answer, scored as one of a list of accepted ones is.
        score_choices: whether the line's `choices`, one of which is the reference, are to be scored.
        listed: what draws the phrases that the instruction lists, {phrases} in it, or `phrases.CANDIDATES`: those that
            the line has; None: it lists none.
    """

    instruction: str = ''
    target_lang: str = ''
    slot: str = ''
    reference_field: str = ''
    text_field: str = ''
    score_choices: bool = False
    answered: bool = False
    listed: phrases.PhraseList | str | None = None


def from_manifest(
    path: str | os.PathLike,
    questions: Sequence[Question],
    vocabulary: Any,
    max_seconds: float,
    prompt: prompts.Prompt,
    on_bad: Callable[[str], None] | None = None,
    task: str = '',
    longest: float | None = None,
    listen: bool = True,
    limit: int | None = None,
) -> Iterator[Query]:
    """Every question put to every line of a manifest (see `slm_jax.data.manifests`).

    Args:
        path: JSONL; also a predictions.jsonl of an earlier evaluation.
        questions: one or more; each line's recording is read once for all of them.
        vocabulary: of the inputs; None for a system that reads no text.
        max_seconds: longest recording that is let through.
        prompt: of the model.
        on_bad: is told what is wrong with a line, which is then left out; None: it is raised.
        task: name of it all, for lines that name none.
        longest: see `check_length`.
        listen: False: recordings are not read, and the queries have none, to check all else first.
        limit: of lines, the first ones; None: all.

    Raises:
        ValueError: a line cannot be used; names file, line, field and remedy.
    """
    from slm_jax.data import manifests, segments

    folder = paths.path(path).parent
    for raw, line in itertools.islice(manifests.rows(path), limit):
        try:
            if line['error']:
                raise ValueError(line['error'])
            if interleaved.several(raw, all(question.score_choices for question in questions)):
                read = functools.partial(check_length, max_seconds=max_seconds, longest=longest) if listen else None
                raw = {'task': task, **raw}
                yield from [_of_several(q, raw, line, folder, read, vocabulary, prompt) for q in questions]
                continue
            listens = not all(question.text_field for question in questions)
            samples = None
            if listens and not line['audio']:
                raise ValueError(f'{line["origin"]}: field "audio" is missing.')
            if listens and listen:
                samples = segments.read(line['audio'], line['offset'], line['duration'])
                check_length(line['audio'], samples, max_seconds, longest)
            raw = {'task': task, **raw}
            asked = [_ask(q, raw, line, samples, vocabulary, prompt) for q in questions]
        except ValueError as error:
            if on_bad is None:
                raise
            on_bad(str(error))
        else:
            yield from asked


def _of_several(
    question: Question,
    raw: Mapping[str, Any],
    line: Mapping[str, str],
    folder: Any,
    read: Callable[[str, Any], None] | None,
    vocabulary: Any,
    prompt: prompts.Prompt,
) -> Query:
    """The query of a line with several recordings, see `interleaved`; `read` is told of each, None: none is read."""
    more: dict[str, Any] = {}
    info: dict[str, Any] = {'id': line['id'], 'task': raw.get('task') or '', 'lang': line['lang']}
    info['subject'] = raw.get('subject')
    if interleaved.FIELD in raw:
        turns = interleaved.turns(raw, line, folder, question.text_field, question.instruction, read)
        tokens, choices = prompt.interleaved(vocabulary, turns.parts), raw.get('choices')
        if turns.samples:
            more = {'samples': np.concatenate(turns.samples), 'recordings': tuple(map(len, turns.samples))}
            info['duration'] = round(len(more['samples']) / SAMPLE_RATE, 3)
        info[interleaved.FIELD] = turns.given
    else:
        choices, heard = interleaved.choices(raw, line, folder, question.text_field, read)
        tokens = prompt.tokens(vocabulary, question.instruction, '' if question.text_field else prompts.SPEECH)
        more = {'heard': tuple(heard)}
    info |= (right := references.reference_of(question, raw, line, ''))
    if question.score_choices:
        info['choices'] = references.choices_of({'choices': choices}, line, right['reference'])
    return Query(tokens, info=_present(**info), **more)


def check_length(name: str, samples: Int16[np.ndarray, ' n'], max_seconds: float, longest: float | None = None) -> None:
    """Refuses a recording that is longer than a model takes at once: nothing is ever cut unasked.

    Args:
        name: of the recording.
        samples: of the recording.
        max_seconds: the most that is let through.
        longest: seconds that the speech encoder takes at once, whatever is let through; None: any.

    Raises:
        ValueError: says how long it is and what to do.
    """
    seconds = len(samples) / SAMPLE_RATE
    if seconds > max_seconds:
        whole = longest is None or seconds <= longest
        raise ValueError(
            f'{name}: {round(seconds, 2):g} s is longer than the {max_seconds:g} s that this model takes at once. '
            f'`slm-jax infer --chunk_seconds {math.floor(100 * max_seconds) / 100:g}` cuts it at pauses'
            + (f'; --max_seconds {math.ceil(seconds)} lets it through as it is.' if whole else '.')
        )


def check_tokens(query: Query, most: int | None) -> None:
    """Refuses a prompt that is longer than `most` tokens with its padding, by a ValueError; None: none is."""
    if most is not None and -(-len(query.tokens) // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE > most:
        name = f'example {query.info["id"]!r}: ' if 'id' in query.info else ''
        raise ValueError(
            f'{name}{len(query.tokens)} tokens are read of it, and the language model has {most} positions. Cut the '
            'text, or leave it out.'
        )


def _ask(
    question: Question,
    raw: Mapping[str, Any],
    line: Mapping[str, str],
    samples: np.ndarray | None,
    vocabulary: Any,
    prompt: prompts.Prompt,
) -> Query:
    from slm_jax.data import instructions

    target_lang = question.target_lang or ('' if question.slot else line['target_lang'])
    own = json.loads(line['phrases']) if line['phrases'] else None
    candidates: Sequence[str] = ()
    if isinstance(question.listed, str):
        if (candidates := phrases.of_row(raw, question.listed) or ()) == ():
            raise ValueError(f'{line["origin"]}: no field "{question.listed}", which slm-jax retrieve writes.')
    elif question.listed:
        candidates = question.listed(own or (), line['text'], line['id'])
    instruction = wording(question.instruction or line['instruction'], line['lang'], target_lang, candidates)
    if not question.target_lang and instructions.transcribes(instruction):
        target_lang = ''  # the line's, of a translation that is not asked for
    speech: int | str = prompts.SPEECH
    if question.text_field:
        text = references.at(raw, question.text_field)
        if not isinstance(text, str):
            raise ValueError(f'{line["origin"]}: no text in field {question.text_field!r} (text_field).')
        speech, samples = text, None
    try:
        put = asked(vocabulary, prompt, instruction, speech, line['lang'], target_lang)
    except ValueError as error:
        raise ValueError(f'{line["origin"]}: {error}') from error
    return Query(
        **put,
        samples=samples,
        info=_present(
            id=line['id'],
            task=raw.get('task') or '',
            lang=line['lang'],
            target_lang=target_lang,
            slot=question.slot or raw.get('slot'),
            instruction=instruction,
            **(right := references.reference_of(question, raw, line, target_lang)),
            choices=references.choices_of(raw, line, right['reference']) if question.score_choices else None,
            duration=None if samples is None else round(len(samples) / SAMPLE_RATE, 3),
            audio=line['audio'] and paths.absolute(line['audio']),
            offset=float(line['offset']) if line['offset'] else None,
            phrases=own,
            cluster=raw.get('cluster'),
            subject=raw.get('subject'),
        ),
        transcribed=instructions.transcribes(instruction),
    )


def asked(
    vocabulary: Any,
    prompt: prompts.Prompt,
    instruction: str,
    speech: int | str = prompts.SPEECH,
    lang: str = '',
    target_lang: str = '',
) -> dict[str, Any]:
    """`tokens` and `first` of a `Query`.

    Args:
        vocabulary, prompt, instruction, speech: see `prompts.Prompt.tokens`.
        lang: of the speech or text, where it is known; else the instruction may name it.
        target_lang: of the answer, where the instruction is no request for a transcript or a translation.

    Raises:
        ValueError: the language model knows languages by codes, and has none of these; or it reads no instructions,
            and this is none that codes of languages say.
    """
    if not getattr(vocabulary, 'languages', None):
        return {'tokens': prompt.tokens(vocabulary, instruction, speech)}
    from slm_jax.data import instructions, languages

    named = instructions.spoken_and_wanted(instruction)
    lang = lang or (named[0] if named else '')
    wanted = target_lang if named is None else named[1] or lang
    if not prompt.instructed:
        if not wanted and named is None:
            raise ValueError(
                f'instruction {instruction!r}: this model reads none, it transcribes and translates. Ask so in words '
                'of slm_jax/data/instructions.py, as "Translate this French speech to English."'
            )
        if not lang:
            raise ValueError(
                f'instruction {instruction!r}: which language is spoken is not known, and this model is told it. Name '
                'it ("Transcribe the French speech."), or give lang in a manifest.'
            )
    first = languages.begun(vocabulary, wanted) if wanted else ()
    return {'tokens': prompt.tokens(vocabulary, instruction, speech, lang), 'first': first[0] if first else 0}


def wording(instruction: str, lang: str, target_lang: str, candidates: Sequence[str] = ()) -> str:
    """The instruction with {language}, {target_language} and {phrases} filled in.

    '' asks for a transcription, which lists the candidates, or for a translation where there is a target language.

    Raises:
        ValueError: the instruction names a language that is not known, or has no place for the candidates.
    """
    from slm_jax.data import languages

    names = {
        'language': languages.name(lang) if lang else None,
        'target_language': languages.name(target_lang) if target_lang else None,
    }
    if not instruction:
        from slm_jax.data import instructions

        kind = 'ast' if target_lang else 'asr_phrases' if candidates else 'asr_language' if lang else 'asr'
        instruction = instructions.TEMPLATES[kind][0]
    for name, value in names.items():
        if '{' + name + '}' in instruction and not value:
            raise ValueError(
                f'instruction {instruction!r}: the {name.replace("_", " ")} is not known; give it '
                'in the manifest or write its name into the instruction.'
            )
        instruction = instruction.replace('{' + name + '}', value or '')
    if ('{phrases}' in instruction) != bool(candidates):
        raise ValueError(
            f'instruction {instruction!r}: it has no place {{phrases}} for those that are listed. Give --instruction.'
            if candidates
            else f'instruction {instruction!r}: there are no phrases to list. Leave out {{phrases}}, or give some.'
        )
    return instruction.replace('{phrases}', phrases.written(candidates))


def _present(**fields: Any) -> dict[str, Any]:
    """The fields that say something; the id and the reference always stay, an offset of 0, and an empty list."""
    known = ('offset', 'phrases')
    return {k: v for k, v in fields.items() if v or k in ('id', 'reference') or (k in known and v is not None)}
