"""What clients may send: OpenAI's requests, as far as they mean something here. All else is refused, never ignored."""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from slm_jax.inference.asking import Message
from slm_jax.serving.errors import ApiError

FORMATS = ('json', 'text', 'srt', 'vtt', 'verbose_json')
_Zero = Annotated[float, pydantic.Field(ge=0, le=0)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid', allow_inf_nan=False)


class _Text(_Strict):
    type: Literal['text']
    text: str


class _Recording(_Strict):
    data: str
    format: Literal['wav', 'mp3', 'flac', 'ogg', 'opus', 'm4a', 'mp4', 'webm', 'aac', 'amr']


class _Audio(_Strict):
    type: Literal['input_audio']
    input_audio: _Recording


_Part = Annotated[_Text | _Audio, pydantic.Field(discriminator='type')]


class _Message(_Strict):
    role: Literal['system', 'developer', 'user', 'assistant']
    content: str | Annotated[list[_Part], pydantic.Field(min_length=1)]
    name: str | None = None
    # What an answer of before has besides, when it is sent back.
    annotations: None | Annotated[list[Any], pydantic.Field(max_length=0)] = None
    audio: None = None
    function_call: None = None
    refusal: None = None
    tool_calls: None = None


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _TextFormat(_Strict):
    type: Literal['text']


class Chat(_Strict):
    """The body of /v1/chat/completions; fields that have one value only are there for clients that send it."""

    messages: Annotated[list[_Message], pydantic.Field(min_length=1, max_length=256)]
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None
    temperature: Annotated[float, pydantic.Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    n: Literal[1] | None = None
    seed: int | None = None
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    logprobs: Literal[False] | None = None
    modalities: list[Literal['text']] | None = None
    response_format: _TextFormat | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    user: str | None = None

    @property
    def most(self) -> int | None:
        """Tokens at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def conversation(self) -> tuple[list[Message], bytes | None]:
        """The turns, and the recording that one of the user's has.

        Raises:
            ApiError: there are several recordings, or one where none can be, or the last turn is not the user's.
        """
        turns, recording = [], None
        for number, message in enumerate(self.messages):
            place = f'messages[{number}]'
            parts = [_Text(type='text', text=message.content)] if isinstance(message.content, str) else message.content
            audio = [part.input_audio.data for part in parts if isinstance(part, _Audio)]
            text = '\n'.join(part.text for part in parts if isinstance(part, _Text))
            if audio and (message.role != 'user' or len(audio) > 1 or recording is not None):
                raise ApiError(
                    400, f'{place}: one recording in a conversation, in a message of the user, is heard.', place
                )
            if audio:
                recording = _decoded(audio[0], place)
            role = 'system' if message.role == 'developer' else message.role
            turns.append(Message(role, text.strip(), bool(audio)))
        last = turns[-1]
        if last.role != 'user':
            raise ApiError(400, f'The last message is of the role {last.role!r}; it must be of the user.', 'messages')
        if not last.text and not last.speech:
            raise ApiError(400, 'The last message is empty; say what is asked.', 'messages')
        return turns, recording


class Translation(_Strict):
    """The fields of /v1/audio/translations beside the file; `language` is spoken, which OpenAI's does not ask."""

    model: str
    language: str = ''
    response_format: Literal['json', 'text', 'srt', 'vtt', 'verbose_json'] = 'json'
    temperature: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None


class Transcription(Translation):
    """The fields of /v1/audio/transcriptions beside the file; `prompt` has phrases that may be said."""

    timestamp_granularities: list[Literal['segment', 'word']] = ['segment']
    stream: bool = False
    chunking_strategy: Literal['auto'] = 'auto'
    prompt: str = ''

    @property
    def word_times(self) -> bool:
        """Whether the times of words are asked for."""
        return 'word' in self.timestamp_granularities


Asked = TypeVar('Asked', bound=Translation)


def chat(content: bytes) -> Chat:
    """The body of /v1/chat/completions; ApiError if it is none."""
    try:
        return Chat.model_validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        raise _refused(error) from None


def translation(fields: Mapping[str, Any]) -> Translation:
    """The fields of a form; ApiError if they are not those of a translation."""
    return _fields(Translation, fields)


def transcription(fields: Mapping[str, Any]) -> Transcription:
    """The fields of a form; ApiError if they are not those of a transcription."""
    asked = _fields(Transcription, fields)
    if asked.word_times and (asked.stream or asked.response_format in ('json', 'text')):
        raise ApiError(
            400,
            'timestamp_granularities: words have times in response_format verbose_json, srt and vtt, not streamed.',
            'timestamp_granularities',
        )
    return asked


def _fields(kind: type[Asked], fields: Mapping[str, Any]) -> Asked:
    try:
        return kind.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _refused(error) from None


def _refused(error: pydantic.ValidationError) -> ApiError:
    """The first thing that is wrong."""
    # Of a union's members the one that goes furthest was meant.
    first = max(
        error.errors(include_url=False, include_context=False, include_input=False), key=lambda e: len(e['loc'])
    )
    # The names of a union's members stand among the fields.
    names = [place for place in first['loc'] if isinstance(place, int) or not place.startswith(('list[', '_'))]
    names = [name for name in names if name not in ('str', 'text', 'input_audio') or names.count(name) > 1]
    param = ''.join(f'[{name}]' if isinstance(name, int) else f'.{name}' for name in names).lstrip('.')
    message = 'is not known here; leave it out' if first['type'] == 'extra_forbidden' else first['msg']
    return ApiError(400, f'{param or "The body"}: {message}.', param or None)


def _decoded(data: str, place: str) -> bytes:
    """The bytes of base64, also as a data URL."""
    if data.startswith('data:'):
        data = data.partition(',')[2]
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f'{place}: input_audio.data is not base64 ({error}).', place) from None
