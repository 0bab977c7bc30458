"""Fixtures that tests of several rooms use: a tokenizer, recordings, a manifest of them."""

import io
import json
import pathlib
import sys
import types

import numpy as np
import pytest

TEXTS = {
    'en': ['Please hold the line.', 'You have three new messages.', 'Goodbye!', "It isn't here."],
    'fr': [
        'Ne quittez pas.',
        'Vous avez trois nouveaux messages.',
        'Au revoir !',
        "Ce n'est pas là.",
    ],
}


MAPS = pathlib.Path('/proc/self/maps')  # of memory; Linux allows a process 65,530


@pytest.fixture(autouse=True, scope='module')
def few_programs():
    """Lets go of compiled programs before there are too many: each maps memory, and beyond the limit LLVM crashes."""
    yield
    if 'jax' in sys.modules and MAPS.exists() and MAPS.read_text().count('\n') > 20_000:
        sys.modules['jax'].clear_caches()


@pytest.fixture(scope='session')
def sentencepiece_model(tmp_path_factory) -> str:
    """Path of a byte-fallback SentencePiece model: 0 padding, 1 EOS, 2 unknown."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for texts in TEXTS.values() for text in texts] * 5),
        model_writer=model,
        vocab_size=330,
        model_type='unigram',
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp('vocabulary') / 'tokenizer.model'
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture
def vocabulary(sentencepiece_model, monkeypatch):
    """The tokenizer that all foundations have in the test."""
    from slm_jax.data import vocabularies
    from slm_jax.foundations import tokenizers

    vocabulary = tokenizers.SentencePiece(sentencepiece_model)
    monkeypatch.setattr(vocabularies, '_load', lambda name: vocabulary)
    return vocabulary


@pytest.fixture(scope='session')
def recorded():
    """recorded(samples, rate, container, codec): what a phone or a browser writes, to a file or to a pipe."""
    import av

    def encode(samples, rate, container, codec, piped=False, **options) -> bytes:
        buffer, options = io.BytesIO(), {name: str(value) for name, value in options.items()}
        samples = samples.reshape(len(samples), -1)
        layout = 'stereo' if samples.shape[1] == 2 else 'mono'
        sink = types.SimpleNamespace(write=buffer.write) if piped else buffer
        with av.open(sink, 'w', format=container, container_options=options) as file:
            track = file.add_stream(codec, rate=rate, layout=layout, options=options)
            values = (samples * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(values, format='s16', layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            file.mux(track.encode(frame))
            file.mux(track.encode(None))
        return buffer.getvalue()

    return encode


@pytest.fixture
def write_wav():
    """write_wav(path, seconds, rate=16000) writes noise that is the same for the same name."""
    import soundfile

    def write(path, seconds: float, rate: int = 16000):
        rng = np.random.default_rng(len(path.name) + sum(path.name.encode()))
        samples = (1000 * rng.standard_normal(int(seconds * rate))).astype(np.int16)
        soundfile.write(path, samples, rate, subtype='PCM_16')
        return samples

    return write


@pytest.fixture
def manifest(tmp_path, write_wav):
    """Path of a manifest: 24 recordings of 0.3 to 3 s, two languages, translated."""
    lines = []
    for number in range(24):
        lang, other = ('en', 'fr') if number % 3 else ('fr', 'en')
        seconds = round(0.3 + 0.11 * ((7 * number) % 24), 3)
        write_wav(tmp_path / f'clip{number:02d}.wav', seconds)
        which = number % 4
        lines.append(
            {
                'audio': f'clip{number:02d}.wav',
                'text': TEXTS[lang][which],
                'lang': lang,
                'translation': {other: TEXTS[other][which]},
                'duration': seconds,
                'instruction': f'Say number {number}.',
                'target': f'number {number}',
            }
        )
    path = tmp_path / 'manifest.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    return path


_SIZES = """
from __gin__ import dynamic_registration
from slm_jax.adapters import slm as adapter
from slm_jax.encoders import usm
from slm_jax.llms import t5
from slm_jax import decoding
from slm_jax.systems import slm
from slm_jax.systems import speech_encoder
include 'models/slm_tiny.gin'
TASK_FEATURE_LENGTHS = {'speech': 64000, 'inputs': 64, 'targets': 64}
adapter.SlmAdapterConfig.num_layers = 1
adapter.SlmAdapterConfig.output_dim = 32
adapter.SlmAdapterConfig.emb_dim = 32
adapter.SlmAdapterConfig.mlp_dim = 32
usm.UsmConfig.num_layers = 1
usm.UsmConfig.emb_dim = 32
usm.UsmConfig.subsample_channels = (4, 4)
t5.T5Config.vocab_size = 384
t5.T5Config.emb_dim = 32
t5.T5Config.mlp_dim = 32
t5.T5Config.head_dim = 8
t5.T5Config.num_encoder_layers = 1
t5.T5Config.num_decoder_layers = 1
speech_encoder.SpeechEncoder.ctc_vocab_size = 384
slm.SLM.label_tokens = None
decoding.DecodeConfig.method = 'greedy'
decoding.DecodeConfig.ctc_weight = 0.0
"""


@pytest.fixture(scope='module')
def world(tmp_path_factory, sentencepiece_model):
    """A folder with `sizes.gin`, two tiny foundations and the directory of a training, `slm`; nothing is trained."""
    import jax
    import jax.numpy as jnp

    import slm_jax.tasks  # noqa: F401  registers with gin what a run's configuration has
    from slm_jax import configuration, foundations
    from slm_jax.inference import model as model_lib
    from slm_jax.inference import traces
    from slm_jax.training import checkpoints, origins, state

    folder = tmp_path_factory.mktemp('world')
    sizes = folder / 'sizes.gin'
    sizes.write_text(_SIZES)
    configuration.parse_gin([str(sizes)])
    system = model_lib.configured_system()
    config = configuration.operative_config()
    shapes = state.unboxed(traces.abstract_params(system))
    rng = np.random.default_rng(0)

    def some(leaf):
        return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)

    params = jax.tree.map(some, shapes)
    names = {'speech_encoder': 'usm', 'llm': 't5'}
    for part, name in names.items():
        card = {'name': name, 'kind': part}
        foundations.save(folder / name, params[part], card, [sentencepiece_model])
    found = origins.find({part: str(folder / name) for part, name in names.items()})
    saved = checkpoints.Checkpoints(folder / 'slm')
    for step in (3, 7):
        number = jnp.int32(step)
        trained = {'adapter': jax.tree.map(lambda x, s=step: x + s - 7, params['adapter'])}
        now = state.TrainState(number, jnp.int32(-1), trained, {'count': number})
        card = {
            'name': 'slm',
            'kind': checkpoints.KIND,
            'foundations': {origin.subtree: origin.describe() for origin in found},
            'config': config,
        }
        saved.save(now, jax.random.key(0), card)
    saved.close()
    return folder


@pytest.fixture(autouse=True, scope='session')
def _cache(tmp_path_factory):
    """What is noted of foundations goes to no user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLM_JAX_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='session')
def store():
    """An empty bucket, gs://bucket, on loopback, and clients that look for it there."""
    pytest.importorskip('gcsfs')
    import object_store

    from slm_jax import paths

    with object_store.serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        paths._reach.cache_clear()
        yield store


_HUM = """
import sys, wave
out, text, speed = sys.argv[1:]
if 'dumb' in text:
    sys.exit('I am dumb')
with wave.open(out, 'wb') as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
    file.writeframes(b'\\x10\\x27\\xf0\\xd8' * int(400 * len(text.split()) / float(speed)))
"""


@pytest.fixture
def hum(tmp_path):
    """The beginning of a command that hums for 0.1 s a word."""
    script = tmp_path / 'hum.py'
    script.write_text(_HUM)
    return f'{sys.executable} -S {script}'
