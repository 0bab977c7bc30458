"""What a tokenizer cannot write: counted where lengths are measured, said, and refused where it is everything."""

import io
import json

import pytest
import seqio

import gin
from slm_jax import tasks  # noqa: F401  registers tasks
from slm_jax.data import cache, measure, mixtures, preprocessors, vocabularies
from slm_jax.data import loader as loader_lib
from slm_jax.tasks import registry

CHINESE = '你好,世界!'


@pytest.fixture(scope='module')
def latin(tmp_path_factory):
    """A tokenizer without byte fallback, as FLAN-T5's."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['please hold the line , now !'] * 9), model_writer=model, vocab_size=40,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp('latin') / 'tokenizer.model'
    path.write_bytes(model.getvalue())
    return seqio.SentencePieceVocabulary(str(path))


@pytest.mark.parametrize(
    'text, letters, lost', [('please hold', 10, 0), (CHINESE, 4, 4), ('hold 好', 5, 1), ('♥', 1, 1), ('', 0, 0)]
)
def test_unknown_letters(latin, text, letters, lost):
    assert measure.unknown(latin.encode(text), text, latin)[:2] == (letters, lost)


def test_bytes_are_never_unknown():
    vocabulary = seqio.ByteVocabulary()
    assert measure.unknown(vocabulary.encode(CHINESE), CHINESE, vocabulary)[:2] == (4, 0)


@pytest.mark.parametrize('kind', ['asr', 'ctc'])
def test_a_loader_warns_and_refuses(latin, kind, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vocabularies, '_load', lambda name: latin)
    known = dict(seqio.TaskRegistry._REGISTRY)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]

    def load(*texts):
        changed = [row | {'text': texts[n % len(texts)]} for n, row in enumerate(rows)]
        manifest.write_text(''.join(json.dumps(row) + '\n' for row in changed))
        registry.manifest(f'texts_{kind}', manifest, kind)
        return loader_lib.SpeechTextLoader(f'texts_{kind}', cache_dir=tmp_path / 'cache')

    try:
        load('hold the line')
        assert 'unknown' not in capsys.readouterr().err
        load('hold the line', CHINESE)
        said = capsys.readouterr().err
        assert f'WARNING: texts_{kind} train: 12 of 24 targets hold characters' in said
        assert '26.7% of all letters' in said and '你好' in said
        with pytest.raises(ValueError, match="writes all 24 targets of split 'train' as unknown: '你好.*mT5"):
            load(CHINESE)
    finally:
        seqio.TaskRegistry._REGISTRY.clear()
        seqio.TaskRegistry._REGISTRY.update(known)


@pytest.mark.parametrize('kind, wordings', [('asr', 8), ('ctc', 1), ('phrase', preprocessors.MAX_TEMPLATES), ('mt', 8)])
def test_wordings_are_measured_where_there_are_several(kind, wordings, manifest, tmp_path):
    known = dict(seqio.TaskRegistry._REGISTRY)
    try:
        registry.manifest(f'worded_{kind}', manifest, kind)
        (task,), _ = mixtures.tasks_and_rates(f'worded_{kind}')
        (store,) = cache.open_stores([task], 'train', tmp_path / 'cache', 'skip')
        assert measure.wordings(task, store) == wordings
        gin.bind_parameter('slm_jax.data.prompts.Prompt.template', '{speech}')
        assert measure.wordings(task, store) == (wordings if kind == 'phrase' else 1)
    finally:
        gin.clear_config()
        seqio.TaskRegistry._REGISTRY.clear()
        seqio.TaskRegistry._REGISTRY.update(known)
