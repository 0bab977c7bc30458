"""A text that is said: the units that a model writes go to the vocoder, of the same codebook, and a file is whole."""

import dataclasses
import types

import numpy as np
import pytest
import soundfile

from slm_jax import infer, model_arguments
from slm_jax.codebooks import vocoder as vocoder_lib
from slm_jax.data.modalities import Modalities, Prompt
from slm_jax.decoding import DecodeConfig
from slm_jax.llms.decoder_only import DecoderOnlyConfig

CONFIG = DecoderOnlyConfig(vocab_size=330, emb_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
KNOWN = Modalities(llm=CONFIG, speech=12, languages=('en', 'fr'))
SPEECH, CONTROL = KNOWN.ranges['speech'][0], KNOWN.ranges['control'][0]


class Vocoder:
    """Says 80 samples a unit, of the unit's number."""

    codebook = 'k12@abc'
    model = types.SimpleNamespace(config=types.SimpleNamespace(num_units=12))

    def speak(self, units):
        return np.repeat(100 * units, 80).astype(np.int16)


@pytest.fixture
def program(monkeypatch, vocabulary):
    """program(arguments, …) runs `slm-jax infer` with a model that writes certain tokens: (status, its prompts)."""
    asked = []

    def run(*arguments, written=(SPEECH + 3, SPEECH + 7, 1), known=KNOWN, vocoder=Vocoder):
        def tokens(batch):
            asked.append([int(token) for token in batch['encoder_input_tokens'][0] if token])
            return np.array([[*written, *[0] * (20 - len(written))]])

        model = types.SimpleNamespace(
            system=types.SimpleNamespace(modalities=known, sampling=DecodeConfig('sample', 20)),
            prompt=Prompt(modalities=known), text_vocabulary=vocabulary, row_multiple=1, tokens=tokens,
            directory=types.SimpleNamespace(name='dmlm'), foundations={},
            cut=lambda row: '' if 1 in row else 'max_decode_length',
        )  # fmt: skip
        monkeypatch.setattr(vocoder_lib.Vocoder, 'load', lambda directory: vocoder())
        monkeypatch.setattr(model_arguments, 'load', lambda name, args: model)
        return infer.main([*arguments, '--model', 'dmlm']), asked

    return run


def test_a_text_is_said(program, vocabulary, tmp_path, capsys):
    out = str(tmp_path / 'out.wav')
    status, (prompt,) = program('--speak', 'Goodbye!', out, '--vocoder', 'voc')
    assert status == 0
    assert prompt == [CONTROL, *vocabulary.encode('Goodbye!'), CONTROL + 1, CONTROL + 3]
    samples, rate = soundfile.read(out, dtype='int16')
    assert rate == 16_000 and samples.tolist() == 80 * [300] + 80 * [700]
    printed = capsys.readouterr()
    assert printed.out == f'{out}: 0.01 s\n' and not printed.err
    _, prompts = program(
        '--speak', 'Au revoir', out, '--vocoder', 'voc', '--instruction', 'Say it in French.', written=[SPEECH]
    )
    assert prompts[-1][-1] == CONTROL + 4
    assert 'what is said is cut, it reached max_decode_length 20' in capsys.readouterr().err


class Other(Vocoder):
    model = types.SimpleNamespace(config=types.SimpleNamespace(num_units=9))


@pytest.mark.parametrize(
    ('arguments', 'fields', 'message'),
    [
        (['out.mp3', '--vocoder', 'voc'], {}, '--speak takes a text, one file to write, and what says the units'),
        (['out.wav'], {}, '--speak takes a text, one file to write, and what says the units'),
        (['a.wav', 'b.wav', '--vocoder', 'voc'], {}, '--speak takes a text, one file to write'),
        (['out.wav', '--vocoder', 'voc'], {'known': None}, '--speak: dmlm writes no units of speech'),
        (['out.wav', '--vocoder', 'voc'], {'vocoder': Other}, '--vocoder: it says 9 units (k12@abc), and dmlm has 12'),
        (
            ['out.wav', '--vocoder', 'voc'],
            {'known': dataclasses.replace(KNOWN, codebook='gone')},
            "--speak: the codebook of dmlm, SPEECH_CODEBOOK: No foundation 'gone'",
        ),
        (['out.wav', '--vocoder', 'voc'], {'written': [1]}, "--speak: dmlm writes nothing to 'Goodbye!'"),
        (
            ['out.wav', '--vocoder', 'voc', '--instruction', 'Say it in German.'],
            {},
            "the language 'de' has no control token",
        ),
    ],
)
def test_what_cannot_be_said(arguments, fields, message, program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program('--speak', 'Goodbye!', *arguments, **fields)[0] == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
