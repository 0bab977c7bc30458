"""An mBART from parallel text: its vocabulary, a training, answers, an export, an import, a fine-tuning."""

import json

import numpy as np
import pytest

import gin
from slm_jax import cli, foundations, pretrain
from slm_jax.data import json_lines
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries

PAIRS = [('en', 'one two three'), ('de', 'eins zwei drei'), ('fr', 'un deux trois')]
SMALL = [
    '--gin.VOCAB_SIZE=128', '--gin.EMBED_DIM=16', '--gin.NUM_HEADS=2', '--gin.MLP_DIM=16', '--gin.TRAIN_STEPS=2',
    '--gin.mbart.MBartConfig.num_encoder_layers=1', '--gin.mbart.MBartConfig.num_decoder_layers=1',
    '--gin.EVAL_PERIOD=2', '--gin.WARMUP_STEPS=1', '--gin.BATCH_SECONDS=8.0', '--gin.NUM_BUCKETS=1',
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With pairs.jsonl."""
    lines = [
        {'text': text, 'lang': lang, 'translation': other, 'target_lang': to}
        for lang, text in PAIRS
        for to, other in PAIRS
        if lang != to
    ]
    json_lines.write(tmp_path / 'pairs.jsonl', lines)
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    yield tmp_path
    gin.clear_config()


@pytest.mark.slow
def test_from_parallel_text_to_transformers_layout_and_on(folder, capsys):
    from slm_jax.corpora import tokenizers

    manifest = f"--gin.TEXT_MANIFEST='{folder / 'pairs.jsonl'}'"
    tokenizers.main([str(folder / 'pairs.jsonl'), str(folder), '--parallel', '--pieces', '40'])
    tokenizer = ['--tokenizer', str(folder / 'mbart_tiny')]
    assert pretrain.main(['mbart_tiny', str(folder / 'out'), *tokenizer, manifest, *SMALL]) == 0
    made = folder / 'out' / 'mbart_tiny'
    codes = foundations.card(made)['languages']

    gin.clear_config()
    read = ['--manifest', str(folder / 'pairs.jsonl'), '--text_field', 'text', '--decode', 'greedy']
    sizes = ['--max_decode_length', '4', *SMALL[:4], *SMALL[5:7], '--out', str(folder / 'scores')]
    assert cli.main(['evaluate', str(made), *read, *sizes]) == 0
    scores = json.loads((folder / 'scores' / 'results.json').read_text())['scores']['translation']
    assert {'en-de', 'de-en', 'fr-en', 'overall', 'average'} <= {*scores} and {'bleu', 'chrf'} <= {*scores['de-en']}

    gin.clear_config()
    trained = folder / 'out' / 'stages' / 'translation'
    model = model_lib.load(str(trained), decode={'max_decode_length': 4})
    tokens = model.prompt.tokens(model.text_vocabulary, '', 'eins zwei', 'de')
    assert tokens[0] == codes['de_DE'] and tokens[-1] == 1
    batch = queries.batch_of([queries.Query(tokens, first=codes['fr_XX'])], (0.0, 32), 1)
    written = np.asarray(model.system.predict(model.params, model.placed(batch), model.decode))
    assert written[0, 0] == codes['fr_XX'] and 'fr_XX' not in model.answers(batch)[0].text

    gin.clear_config()
    assert cli.main(['export', str(trained), str(folder / 'exported')]) == 0
    gin.clear_config()
    assert cli.main(['import', str(folder / 'exported'), str(folder / 'imported'), '--dtype', 'float32']) == 0
    again = foundations.card(folder / 'imported')
    assert again['languages'] == codes
    own = foundations.fingerprint(model.params['llm'])
    assert again['fingerprint']['content'] == own['content']

    gin.clear_config()
    capsys.readouterr()
    options = [*SMALL[4:5], *SMALL[7:], manifest, f"--gin.MODEL_DIR='{folder / 'tuned'}'"]
    files = ['--gin_file=runs/mbart_translation.gin', f'--gin_file={folder / "imported" / "model.gin"}']
    assert cli.main(['train', *files, *options]) == 0
    card = json.loads((folder / 'tuned' / 'card.json').read_text())
    assert card['initialised_from']['llm']['fingerprint']['content'] == own['content']
