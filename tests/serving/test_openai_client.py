"""The published client of OpenAI against a server of slm_tiny, and every answer against infer's own."""

import base64
import concurrent.futures
import io
import pathlib

import numpy as np
import openai
import pytest
import soundfile
from served import RATE, running

from slm_jax import infer
from slm_jax.audio import waveforms
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries, rendering, words
from slm_jax.serving import service as service_lib

CLIPS = sorted((pathlib.Path(__file__).parents[1] / 'testdata' / 'speech').glob('*.ogg'))
ASKED = 'Transcribe the speech.'


@pytest.fixture(scope='module')
def model():
    return model_lib.load('slm_tiny', decode={'max_decode_length': 48})


@pytest.fixture(scope='module')
def wanted(model):
    """What infer says of each clip."""
    recordings = [infer.Recording(str(clip), ASKED, transcribed=True) for clip in CLIPS]
    answered = list(infer.Inference(model, 2.0, batch_seconds=8.0).run(recordings))
    texts = {clip: recording.texts[0] for clip, recording in zip(CLIPS, answered, strict=True)}
    assert len(set(texts.values())) == len(CLIPS) and all(texts.values())
    return texts


@pytest.fixture(scope='module')
def client(model):
    service = service_lib.Service(model, 'tiny', max_rows=4, chunk_seconds=2.0)
    with running(service) as address:
        with openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0, timeout=300) as client:
            yield client


def message(clip, text=ASKED):
    data = base64.b64encode(clip.read_bytes()).decode()
    parts = [{'type': 'input_audio', 'input_audio': {'data': data, 'format': 'ogg'}}]
    return [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': text}]}]


def transcribed(client, clip, **options):
    return client.audio.transcriptions.create(model='tiny', file=clip, **options)


def test_a_transcript_in_every_format(client, wanted):
    clip = CLIPS[0]
    text = wanted[clip]
    found = transcribed(client, clip)
    assert found.text == text and found.usage.seconds == pytest.approx(1.9, abs=0.01)
    assert transcribed(client, clip, response_format='text') == text + '\n'
    assert transcribed(client, clip, response_format='srt') == f'1\n00:00:00,000 --> 00:00:01,900\n{text}\n'
    assert transcribed(client, clip, response_format='vtt') == f'WEBVTT\n\n00:00:00.000 --> 00:00:01.900\n{text}\n'
    verbose = transcribed(client, clip, response_format='verbose_json', language='en')
    assert (verbose.text, verbose.language, verbose.duration) == (text, 'english', 1.9)
    [segment] = verbose.segments
    assert (segment.start, segment.end, segment.text) == (0.0, 1.9, text) and segment.tokens


def test_a_translation_is_what_infer_says(client, model):
    asked = infer.Recording(str(CLIPS[0]), 'Translate this French speech to English.')
    [answered] = infer.Inference(model, 2.0, batch_seconds=8.0).run([asked])
    found = client.audio.translations.create(model='tiny', file=CLIPS[0], extra_body={'language': 'fr'})
    assert found.text == answered.texts[0]


def test_a_long_recording_is_cut_at_its_pauses(client, wanted):
    clips = CLIPS[:3]
    pause = np.zeros(round(0.3 * RATE), np.int16)
    parts = [part for clip in clips for part in (waveforms.read_waveform(clip)[: round(1.6 * RATE)], pause)]
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(parts), RATE, format='FLAC')
    file.name = 'three.flac'
    file.seek(0)
    found = transcribed(client, file, response_format='verbose_json')
    assert len(found.segments) >= 3 and found.text == ' '.join(segment.text for segment in found.segments)
    assert all(a.end == b.start for a, b in zip(found.segments, found.segments[1:], strict=False))
    file.seek(0)
    events = list(transcribed(client, file, stream=True))
    assert ''.join(event.delta for event in events[:-1]) == events[-1].text == found.text


def test_words_have_the_times_that_infer_gives(client, model, wanted):
    clip = CLIPS[0]
    recordings = [infer.Recording(str(clip), ASKED, transcribed=True)]
    [recording] = infer.Inference(model, 2.0, aligner=words.aligner(model)).run(recordings)
    [said] = recording.words
    both = transcribed(client, clip, response_format='verbose_json', timestamp_granularities=['word', 'segment'])
    assert [word.model_dump() for word in both.words] == [word.line for word in said]
    assert ' '.join(word.word for word in both.words) == wanted[clip] and both.segments[0].text == wanted[clip]
    alone = transcribed(client, clip, response_format='verbose_json', timestamp_granularities=['word'])
    assert alone.words == both.words and alone.segments is None
    assert transcribed(client, clip, response_format='verbose_json').words is None
    for form in ('srt', 'vtt'):
        found = transcribed(client, clip, response_format=form, timestamp_granularities=['word'])
        assert found == rendering.render(recording, form, False, True)
    for options in ({}, {'response_format': 'text'}, {'stream': True}):
        with pytest.raises(openai.BadRequestError, match='words have times in response_format verbose_json, srt'):
            transcribed(client, clip, timestamp_granularities=['word'], **options)


def test_attention_tells_nearly_what_ctc_does(model, wanted):
    tokens = model.prompt.tokens(model.text_vocabulary, ASKED)
    asked = [queries.Query(tokens, waveforms.read_waveform(clip)) for clip in CLIPS]
    batch, texts = queries.batch_of(asked, (2.0, 32), 8), [wanted[clip] for clip in CLIPS]
    found, off = words.AttentionAligner(model).words(batch, [*texts, '']), []
    for text, said, expected in zip(texts, found, words.aligner(model).words(batch, texts)):
        assert [word.text for word in said] == text.split()
        flat = [time for word in said for time in (word.start, word.end)]
        assert flat == sorted(flat) and flat[-1] <= 2.0
        off += [abs(a.start - b.start) for a, b in zip(said, expected)]
    assert found[-1] == [] and len(off) > 15
    assert np.median(off) < 0.1 and np.mean(np.array(off) < 0.15) > 0.9, off


def test_words_of_a_long_recording_follow_each_other(client):
    samples = [waveforms.read_waveform(clip)[: round(1.6 * RATE)] for clip in CLIPS[:2]]
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(samples), RATE, format='FLAC')
    file.name = 'two.flac'
    file.seek(0)
    found = transcribed(client, file, response_format='verbose_json', timestamp_granularities=['word', 'segment'])
    flat = [time for word in found.words for time in (word.start, word.end)]
    assert flat == sorted(flat) and flat[-1] > 2.0 and len(found.segments) > 1
    assert [word.word for word in found.words] == found.text.split()


def test_a_streamed_answer_is_the_whole_one(client, wanted):
    for clip in CLIPS[:3]:
        whole = client.chat.completions.create(model='tiny', messages=message(clip))
        assert whole.choices[0].message.content == wanted[clip] and whole.choices[0].finish_reason == 'stop'
        stream = client.chat.completions.create(
            model='tiny', messages=message(clip), stream=True, stream_options={'include_usage': True}
        )
        *chunks, last, usage = stream
        pieces = [chunk.choices[0].delta.content for chunk in chunks]
        assert ''.join(pieces) == wanted[clip] and sum(map(bool, pieces)) > 1
        assert last.choices[0].finish_reason == 'stop' and usage.usage == whole.usage
    cut = client.chat.completions.create(model='tiny', messages=message(CLIPS[0]), max_tokens=3)
    assert cut.choices[0].finish_reason == 'length' and cut.usage.completion_tokens == 3
    assert wanted[CLIPS[0]].startswith(cut.choices[0].message.content)


def test_no_answer_is_lost_or_swapped(client, wanted):
    def asked(number):
        clip = CLIPS[number % len(CLIPS)]
        if number % 3 == 0:
            return clip, transcribed(client, clip).text
        if number % 3 == 1:
            return clip, client.chat.completions.create(model='tiny', messages=message(clip)).choices[0].message.content
        stream = client.chat.completions.create(model='tiny', messages=message(clip), stream=True)
        return clip, ''.join(chunk.choices[0].delta.content or '' for chunk in stream)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(asked, range(40)))
    assert len(answers) == 40 and [text for _, text in answers] == [wanted[clip] for clip, _ in answers]


def test_what_openai_refuses_is_refused_alike(client):
    for error, options, said in (
        (openai.NotFoundError, {'model': 'gpt-4o'}, "no model 'gpt-4o' here; there is 'tiny'"),
        (openai.BadRequestError, {'temperature': 0.7}, 'generates with temperature 0'),
        (openai.BadRequestError, {'n': 2}, 'n: Input should be 1'),
        (openai.BadRequestError, {'messages': []}, 'messages: List should have at least 1 item'),
        (openai.BadRequestError, {'messages': message(CLIPS[0]) * 2}, 'one recording in a conversation'),
        (
            openai.BadRequestError,
            {'messages': [{'role': 'system', 'content': 'Be brief.'}, *message(CLIPS[0])]},
            'slm_tiny has no chat template',
        ),
    ):
        with pytest.raises(error, match=said):
            client.chat.completions.create(**{'model': 'tiny', 'messages': message(CLIPS[0])} | options)
    with pytest.raises(openai.BadRequestError, match=r"language: 'xx' is not known"):
        transcribed(client, CLIPS[0], language='xx')
    assert [each.id for each in client.models.list()] == ['tiny'] and client.models.retrieve('tiny').id == 'tiny'
