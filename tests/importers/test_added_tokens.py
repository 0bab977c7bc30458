"""Tokens that were added to a T5's tokenizer are encoded as transformers does, or refused by name."""

import io
import json
import pathlib
import random
import shutil

import numpy as np
import pytest

from slm_jax import foundations, import_
from slm_jax.exporters import t5 as exporter
from slm_jax.importers import CheckpointError
from slm_jax.importers import t5 as importers_t5
from slm_jax.importers.hugging_face import t5 as importer
from slm_jax.llms import t5

ROWS = 400


@pytest.fixture(scope='module')
def spiece(tmp_path_factory):
    """A SentencePiece model with T5's normalisation, which has no braces; and the number of its pieces."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['the cat sat on the mat', 'hello world again', 'x = y + z'] * 20),
        model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        normalization_rule_name='nmt_nfkc', minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp('tokenizer') / 'spiece.model'
    path.write_bytes(model.getvalue())
    return path, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


@pytest.fixture
def source(spiece, tmp_path):
    """source(NAME={...}) gives a directory with this tokenizer and these JSON files."""

    def make(**files):
        folder = tmp_path / 'source'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(spiece[0], folder)
        files = {'tokenizer_config': {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 100}} | files
        for name, values in files.items():
            (folder / f'{name}.json').write_text(json.dumps(values))
        return folder

    return make


def vocabulary(folder, rows=ROWS):
    """What a foundation of it would encode with."""
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    card, (name, content) = importers_t5.vocabulary(folder, settings, rows, importer._added_tokens(folder, settings))
    out = folder.parent / 'foundation'
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / name).write_bytes(content)
    (out / 'card.json').write_text(json.dumps(card))
    return foundations.vocabulary(out)


def entry(content, special=False, **changes):
    fields = {'lstrip': False, 'rstrip': False, 'single_word': False, 'normalized': not special, 'special': special}
    return {'content': content} | fields | changes


def decoder(size, *entries):
    numbered = {str(size + number): found for number, found in enumerate(entries)}
    return {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 100, 'added_tokens_decoder': numbered}


def test_each_file_that_may_name_them(source, spiece):
    size = spiece[1] + 100
    braces = {'{': size, '}': size + 1, '<SEP>': size + 2}
    entries = [entry('{'), entry('}'), entry('<SEP>', special=True)]
    sentinel = {'id': size - 1, **entry('<extra_id_0>', special=True)}
    whole = [sentinel, *({'id': size + number, **found} for number, found in enumerate(entries))]
    for files in (
        {'added_tokens': braces},
        {'tokenizer_config': decoder(size, *entries)},
        {'tokenizer': {'added_tokens': whole}},
        {'tokenizer_config': decoder(size, *entries), 'added_tokens': braces, 'tokenizer': {'added_tokens': whole}},
    ):
        found = vocabulary(source(**files))
        the, cat = found.encode('the'), found.encode('cat')
        assert found.encode('the{cat}<SEP>the') == [*the, size, *cat, size + 1, size + 2, *the]
        assert found.encode('the { cat') == [*the, size, *cat]
        assert found.encode('｛{') == [size, size]  # wide, and not: SentencePiece takes both for one
        assert found.decode([*the, size, *cat, size + 1, 1, *the]) == 'the{ cat}'
        assert found.vocab_size == size + 3 and found.extra_ids == 100
        assert (found.eos_id, found.unk_id) == (1, 2)
    plain = vocabulary(source())
    assert 2 in plain.encode('{') and plain.encode('the cat') == found.encode('the cat')


def test_tasks_encode_with_them(source, spiece, monkeypatch):
    from slm_jax.data import output_features, vocabularies

    size, plain = spiece[1] + 100, vocabulary(source())
    found = vocabulary(source(added_tokens={'{': size}))
    monkeypatch.setattr(vocabularies, '_load', lambda name: plain)
    before = output_features.LLM.fingerprint
    monkeypatch.setattr(vocabularies, '_load', lambda name: found)
    assert output_features.LLM.encode('the {')[-1] == size and output_features.LLM.decode([size]) == '{'
    assert output_features.LLM.fingerprint != before  # what was encoded without them is encoded anew


def test_sentinels_stay_whole(source, spiece):
    size = spiece[1] + 100
    found = vocabulary(source(added_tokens={'<': size, '>': size + 1}))
    assert found.encode('the <extra_id_0> <') == [*vocabulary(source()).encode('the <extra_id_0>'), size]


DECODER = 'added_tokens_decoder'
NO_ID = "tokenizer_config.json: the added token '<SEP>' has no id"
OWN_RULES = 'is found by rules of its own'


@pytest.mark.parametrize(
    ('file', 'values', 'match'),
    [
        (
            'added_tokens',
            lambda n: {'{': n + 1},
            r"added_tokens.json: the added token '\{' has the id .*; after .* would",
        ),
        ('added_tokens', lambda n: {'{': n, '}': n + 2}, r"'\}' has the id .* would be"),
        ('added_tokens', lambda n: {'{': 7}, r"'\{' has the id 7; "),
        ('added_tokens', lambda n: {'{': None}, r"added_tokens.json: the added token '\{' has no id"),
        ('added_tokens', lambda n: {'{': 'x'}, 'added_tokens.json: .*means nothing'),
        ('tokenizer', lambda n: {'added_tokens': ['{']}, 'tokenizer.json: .*means nothing'),
        ('tokenizer_config', lambda n: {'additional_special_tokens': ['<SEP>']}, NO_ID),
        ('tokenizer_config', lambda n: {'extra_special_tokens': {'sep': '<SEP>', 'end': '</s>'}}, NO_ID),
        ('tokenizer_config', lambda n: decoder(n, entry('{', single_word=True)), OWN_RULES),
        ('tokenizer_config', lambda n: decoder(n, entry('\n')), OWN_RULES),
        ('tokenizer_config', lambda n: {DECODER: {n: {'special': True}}}, 'tokenizer_config.json: .*means nothing'),
    ],
)
def test_what_cannot_be_carried_over(file, values, match, source, spiece):
    with pytest.raises(CheckpointError, match=match):
        vocabulary(source(**{file: values(spiece[1] + 100)}))


def test_files_that_contradict_each_other(source, spiece):
    size = spiece[1] + 100
    folder = source(tokenizer_config=decoder(size, entry('{')), added_tokens={'{': size + 1})
    with pytest.raises(CheckpointError, match=r"'\{' has the id \d+, tokenizer_config.json says"):
        vocabulary(folder)


def test_more_tokens_than_embeddings(source, spiece):
    with pytest.raises(CheckpointError, match=r"'\{' has the id \d+, and the model \d+ embeddings"):
        vocabulary(source(added_tokens={'{': spiece[1] + 100}), rows=spiece[1] + 100)


def test_bytes(source):
    folder = source(
        tokenizer_config={
            'tokenizer_class': 'ByT5Tokenizer',
            'added_tokens_decoder': {'0': entry('<pad>'), '259': entry('<extra_id_0>'), '384': entry('<SEP>')},
        }
    )
    with pytest.raises(CheckpointError, match="'<SEP>' was added to bytes"):
        vocabulary(folder)


def test_an_imported_model_has_them_and_an_export_too(tmp_path):
    golden = pathlib.Path(__file__).parents[1] / 'testdata' / 't5_goldens' / 't5_1_1'
    source = shutil.copytree(golden, tmp_path / 'source')
    (source / 'added_tokens.json').write_text('{"{": 128, "}": 129}')
    card = import_.import_checkpoint(str(source), str(tmp_path / 'out'))
    assert [token['id'] for token in card['added_tokens']] == [128, 129]
    assert 128 in foundations.vocabulary(tmp_path / 'out').encode('{ the }')
    (tmp_path / 'again').mkdir()
    exporter.write(tmp_path / 'again', *_small(), tmp_path / 'out')
    settings = json.loads((tmp_path / 'again' / 'tokenizer_config.json').read_text())
    again = importers_t5.vocabulary(
        tmp_path / 'again', settings, 176, importer._added_tokens(tmp_path / 'again', settings)
    )
    assert again[0] == {'extra_ids': 100, 'added_tokens': card['added_tokens']}


def _small():
    """A configuration and parameters for `exporter.write`."""
    cfg = t5.T5Config(
        vocab_size=176, emb_dim=4, num_heads=1, num_encoder_layers=1, num_decoder_layers=1, head_dim=4, mlp_dim=4
    )
    return cfg, {path: np.zeros(leaf.shape, np.float32) for path, leaf in importers_t5.shapes(cfg).items()}


TOKENS = {
    'braces': [entry('{'), entry('}'), entry('<SEP>', special=True)],
    'angles': [entry('<'), entry('>'), entry('{{')],
    'words': [entry('ab'), entry('abc'), entry('the')],
    'whitespace': [entry('\n', special=True), entry('\t', special=True)],
    'normalised': [entry('Ａ'), entry('ﬁ'), entry('{')],
    'accents': [entry(' x ', special=True), entry('é')],
}
PARTS = [
    'the',
    ' ',
    '  ',
    'cat',
    *'{}<>\n\tx｛éＡAﬁⅧ▁',
    '<SEP>',
    'abc',
    'ab',
    'fi',
    'e\u0301',
    ' x ',
    'hello',
    '\u200b',
]


@pytest.mark.parametrize('tokens', TOKENS)
def test_texts_are_encoded_as_by_transformers(tokens, source, spiece):
    transformers = pytest.importorskip('transformers', reason='it makes the reference: pip install -e .[hf]')
    folder = source(tokenizer_config=decoder(spiece[1] + 100, *TOKENS[tokens]))
    reference, found = transformers.AutoTokenizer.from_pretrained(folder), vocabulary(folder)
    draw = random.Random(0)
    for _ in range(1000):
        text = ''.join(draw.choices(PARTS, k=draw.randint(0, 8)))
        ids = reference(text).input_ids[:-1]
        assert found.encode(text) == ids, text
        if 2 not in ids:
            assert found.decode(ids) == reference.decode(ids), text
