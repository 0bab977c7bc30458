"""Published checkpoints: their configurations, as they are on the Hub, are read and give their sizes.

tests/testdata/published.json has the keys and values of each, as far as a reader may look at them, and says where they
were seen. `models` are what differs between the sizes of a family, `parameters` what transformers counts.
"""

import dataclasses
import json
import math
import pathlib
import shutil

import pytest

from slm_jax import import_
from slm_jax.importers import hugging_face
from slm_jax.importers import t5 as importers_t5
from slm_jax.importers.hugging_face.directory import Directory

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'
PUBLISHED = json.loads((TESTDATA / 'published.json').read_text(encoding='utf-8'))
MODELS = [(family, model) for family, found in PUBLISHED.items() for model in found['models']]
T5_FIELDS = {
    'd_model': 'emb_dim', 'd_kv': 'head_dim', 'd_ff': 'mlp_dim', 'num_heads': 'num_heads',
    'num_layers': 'num_encoder_layers', 'num_decoder_layers': 'num_decoder_layers',
}  # fmt: skip
# A small checkpoint of each family, for its tensors; and what must then be as small in the configuration.
SMALL = {
    't5 1.0': 't5_goldens/t5_1_0', 't5 1.0 saved again': 't5_goldens/t5_1_0', 't5 1.1': 't5_goldens/t5_1_1',
    'flan-t5': 't5_goldens/t5_1_1', 'mt5': 't5_goldens/mt5', 'mt0': 't5_goldens/mt5', 'umt5': 't5_goldens/umt5',
    'byt5': 't5_goldens/byt5', 'whisper': 'encoder_goldens/whisper', 'whisper large-v3': 'encoder_goldens/whisper',
    'gemma3n': 'encoder_goldens/gemma3n', 'gemma4': 'encoder_goldens/gemma4', 'w2v_bert': 'encoder_goldens/w2v_bert',
    'fine-tuned with an adapter': 'encoder_goldens/w2v_bert_with_adapter',
}  # fmt: skip
SIZES = {
    *T5_FIELDS, 'vocab_size', 'encoder_layers', 'encoder_attention_heads', 'encoder_ffn_dim', 'num_mel_bins',
    'num_hidden_layers', 'hidden_size', 'num_attention_heads', 'intermediate_size', 'conv_depthwise_kernel_size',
    'left_max_position_embeddings', 'right_max_position_embeddings', 'conf_num_hidden_layers',
    'conf_num_attention_heads', 'conf_attention_chunk_size', 'conf_attention_context_left', 'conf_conv_kernel_size',
    'input_feat_size', 'sscp_conv_channel_size', 'output_hidden_size', 'feature_size', 'extra_ids',
    'conv_kernel_size', 'attention_chunk_size', 'attention_context_left', 'subsampling_conv_channels',
    'output_proj_dims', 'num_adapter_layers', 'adapter_kernel_size', 'adapter_stride',
    'use_intermediate_ffn_before_adapter',
}  # fmt: skip


def published(family, model):
    """The config.json of a model."""
    found = PUBLISHED[family]
    return found['config'] | found['models'][model]


def directory(path, config):
    return hugging_face.family(Directory(str(path), path, None, None, config))


@pytest.mark.parametrize(('family', 'model'), MODELS)
def test_sizes(family, model, tmp_path):
    config = published(family, model)
    for name in ('preprocessor_config', 'generation_config'):
        if name in PUBLISHED[family]:
            (tmp_path / f'{name}.json').write_text(json.dumps(PUBLISHED[family][name]))
    importer, found = directory(tmp_path, config)
    if 'd_kv' not in config:
        encoder, frontend = importer.encoder(found)
        config = config.get('audio_config', config)
        sizes = dataclasses.asdict(encoder.config) | dataclasses.asdict(frontend)
        expected = {
            ours: config[theirs]
            for theirs, ours in (importer._SIZES | getattr(importer, '_NUMBERS', {})).items()
            if theirs in config
        }
        assert expected == {name: sizes.get(name, config.get(name)) for name in expected}
        assert sizes['num_layers'] in (4, 6, 12, 24, 32) and sizes['emb_dim'] >= 384
        return
    cfg = importer.config(found)
    assert {ours: getattr(cfg, ours) for ours in T5_FIELDS.values()} == {
        ours: config.get(theirs, config['num_layers']) for theirs, ours in T5_FIELDS.items()
    }
    assert cfg.vocab_size == config['vocab_size']
    assert cfg.mlp_activations == (('relu',) if family.startswith('t5 1.0') else ('gelu', 'linear'))
    assert cfg.scan_layers == (family == 'umt5' or config['num_layers'] > 12)
    if model in PUBLISHED[family].get('parameters', {}):
        cfg = dataclasses.replace(cfg, scan_layers=True, logits_via_embedding=family.startswith('t5 1.0'))
        shapes = importers_t5.shapes(cfg)
        biases = cfg.num_heads * 32 * (cfg.num_encoder_layers + cfg.num_decoder_layers - 2)  # scanned: one a layer
        counted = sum(math.prod(leaf.shape) for leaf in shapes.values()) - biases
        assert counted == PUBLISHED[family]['parameters'][model]


@pytest.mark.parametrize('family', PUBLISHED)
def test_a_small_one_with_these_files(family, tmp_path):
    """The published files are imported, every key of them, with the sizes of a golden's tensors."""
    found = PUBLISHED[family]

    def shrink(values, name):
        own = golden / name
        small = json.loads(own.read_text()) if own.is_file() else {}
        values = {key: shrink(value, name) if key == 'audio_config' else value for key, value in values.items()}
        mine = {key for key in SIZES & small.keys() if key in values or key == 'num_decoder_layers'}
        return values | {key: small[key] for key in mine}

    for model in found['models']:
        golden, source = TESTDATA / SMALL.get(model, SMALL[family]), tmp_path / 'source' / model
        shutil.copytree(golden, source)
        (source / 'config.json').write_text(json.dumps(shrink(published(family, model), 'config.json')))
        for name in ('tokenizer_config', 'generation_config', 'preprocessor_config'):
            if name in found:
                values = shrink(found[name], f'{name}.json')
                for key, value in values.items():
                    if isinstance(value, dict) and 'sentinels' in value:
                        values[key] = [f'<extra_id_{i}>' for i in range(values['extra_ids'])]
                (source / f'{name}.json').write_text(json.dumps(values))
        card = import_.import_checkpoint(str(source), str(tmp_path / model.replace('/', '_')))
        assert card['kind'] == ('llm' if 't5' in SMALL[family] else 'speech_encoder')
        if 't5' in SMALL[family]:
            break  # the files of a family are alike
