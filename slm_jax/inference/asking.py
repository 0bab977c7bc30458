"""What is asked of a model in the end: one instruction, or a conversation about one recording, as a `Query`.

Earlier turns are put to a language model that has a chat template, which says how they are written; any other has
learnt to read one request and no more.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int16

from slm_jax.data import instructions, prompts
from slm_jax.inference import queries

# Stand in the chat template for texts; letters alone, which no template changes.
_QUESTION, _SPEECH = 'QuestionOfTheUser', 'SpeechOfTheUser'


class Message(NamedTuple):
    """A turn of a conversation.

    Attributes:
        role: 'system', 'user' or 'assistant'.
        text: what is said in it; of a user, what is asked.
        speech: whether the recording stands in it.
    """

    role: str
    text: str
    speech: bool = False


def check_hears(model: Any) -> None:
    """Refuses a language model alone, with a ValueError."""
    if not model.hears:
        raise ValueError(
            f'{model.directory}: a language model alone hears nothing. Give --model a trained model (`slm-jax train`); '
            f'texts are put to this one by `slm-jax evaluate {model.directory.name} --manifest FILE --text_field text`.'
        )


def check_reads(model: Any, instruction: str) -> None:
    """Refuses an instruction other than for a transcript where the model reads none, with a ValueError."""
    if model.text_vocabulary is None and not instructions.transcribes(instruction):
        raise ValueError(
            f'instruction {instruction!r}: {model.directory.name} reads none; by CTC it writes what is said. Leave the '
            'instruction out, or give --model a model with a language model.'
        )


def check_lists(model: Any, listed: Sequence[str]) -> None:
    """Refuses phrases where the model reads none, with a ValueError."""
    if listed and model.text_vocabulary is None:
        raise ValueError(f'phrases: {model.directory.name} reads none; by CTC it writes what is said. Leave them out.')


def cut_note(cut: str, decode: Any) -> str:
    """What to say of an answer that a limit cut, see `slm_jax.inference.model.Answer`."""
    flag = '--max_decode_length ' if cut == 'max_decode_length' else f'--gin.DecodeConfig.{cut}='
    limit = getattr(decode, cut)
    return f'the answer is cut, it reached {cut} {limit:g}; {flag}{2 * limit:g} lets it go on.'


def query(
    model: Any, messages: Sequence[Message], samples: Int16[np.ndarray, ' n'] | None, with_ctc: bool = False
) -> queries.Query:
    """The last of these turns, after those before it.

    Args:
        model: see `slm_jax.inference.model`.
        messages: the last one is a user's; one of the users' has the speech, if there are samples.
        samples: of the recording; None for text alone.
        with_ctc: whether CTC takes part whatever is asked, as --ctc_weight says; else in transcripts.

    Raises:
        ValueError: the model does not read such a thing; says why.
    """
    last = messages[-1]
    if samples is not None:
        check_hears(model)
        check_reads(model, last.text)
    elif model.text_vocabulary is None:
        raise ValueError(f'{model.directory.name} has no language model and answers no text; give it a recording.')
    transcribed = samples is not None and (with_ctc or instructions.transcribes(last.text))
    if len(messages) == 1:
        speech: int | str = prompts.SPEECH if samples is not None else ''
        put = queries.asked(model.text_vocabulary, model.prompt, last.text, speech)
    else:
        put = {'tokens': _conversation(model, messages)}
    return queries.Query(**put, samples=samples, transcribed=transcribed)


def reads_history(model: Any) -> str:
    """'' if earlier turns can be put to the model, else why not."""
    if model.text_vocabulary is None or model.prompt.chat is None:
        return f'{model.directory.name} has no chat template: it reads one request at a time'
    if _chat(model.prompt, model.foundations.get('llm', {}).get('name', '')) is None:
        return f'the chat template of {model.directory.name} is not known, or not the one that it was trained with'
    return ''


def _conversation(model: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids of the prompt, with `prompts.SPEECH` in the place of the recording."""
    if why := reads_history(model):
        raise ValueError(f'{why}. Put all that matters into one message of the user.')
    render = _chat(model.prompt, model.foundations['llm']['name'])
    assert render is not None
    turns = [{'role': each.role, 'content': _turn(model.prompt, each)} for each in messages]
    before, *after = render(turns).split(_SPEECH)
    if len(after) != sum(each.speech for each in messages):
        raise ValueError(f'the chat template of {model.directory.name} leaves the turn with the recording out.')
    encode = model.text_vocabulary.encode
    return (*encode(before), *(token for text in after for token in (prompts.SPEECH, *encode(text))))


def _turn(prompt: prompts.Prompt, message: Message) -> str:
    if _SPEECH in message.text:
        raise ValueError(f'{_SPEECH!r} stands for the recording and cannot be written.')
    if not message.speech:
        return message.text
    turn = '{speech}\n{instruction}' if prompt.template is None else prompt.template
    before, behind = turn.split('{instruction}')
    return before.replace('{speech}', _SPEECH) + message.text + behind.replace('{speech}', _SPEECH)


@functools.lru_cache(maxsize=4)
def _chat(prompt: prompts.Prompt, llm: str) -> Any:
    """What renders turns by the chat template of a foundation; None where it is none that gives this prompt."""
    from slm_jax import foundations
    from slm_jax.importers import CheckpointError, chat

    try:
        template = foundations.card(llm).get('chat_template') or ''
    except foundations.FoundationError:
        return None

    def rendered(turns: list[dict[str, str]]) -> str:
        return chat.render(template, f'{llm}/{foundations.CARD}', turns, True)

    assert prompt.chat is not None
    whole = prompt.chat.replace('{user}', _QUESTION)
    try:
        one = rendered([{'role': 'user', 'content': _QUESTION}])
    except CheckpointError:
        return None
    if not one or not whole.endswith(one):
        return None
    begins = whole.removesuffix(one)  # a token that begins a text, whose name the card does not keep
    return lambda turns: begins + rendered(turns)
