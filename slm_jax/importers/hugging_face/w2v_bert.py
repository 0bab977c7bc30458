"""w2v-BERT 2.0's encoder, with its adapter where there is one; a CTC head of a fine-tuned model stays behind."""

import math
import pathlib

from slm_jax.audio.frontends import W2vBertFrontend
from slm_jax.encoders.w2v_bert import ACTIVATIONS, W2vBertConfig, W2vBertEncoder
from slm_jax.importers import CheckpointError, Imported
from slm_jax.importers.hugging_face import speech
from slm_jax.importers.hugging_face.directory import Directory, check_types

MODEL_TYPES = {'wav2vec2-bert': 'Wav2Vec2Bert'}
FILES, LANDMARK = speech.PREPROCESSORS, 'feature_projection.projection.weight'

_SIZES = {
    'num_hidden_layers': 'num_layers', 'hidden_size': 'emb_dim', 'num_attention_heads': 'num_heads',
    'intermediate_size': 'mlp_dim', 'conv_depthwise_kernel_size': 'conv_kernel_size',
    'left_max_position_embeddings': 'max_left', 'right_max_position_embeddings': 'max_right',
    'rotary_embedding_base': 'rotary_base',
}  # fmt: skip
_ADAPTER_SIZES = {
    'num_adapter_layers': 'num_adapter_layers', 'adapter_kernel_size': 'adapter_kernel_size',
    'adapter_stride': 'adapter_stride', 'output_hidden_size': 'adapter_dim',
}  # fmt: skip
_POSITIONS = ('relative_key', 'relative', 'rotary', None)
_READ = {
    'hidden_act', 'adapter_act', 'layer_norm_eps', 'position_embeddings_type', 'add_adapter',
    'use_intermediate_ffn_before_adapter', *_ADAPTER_SIZES,
}  # fmt: skip
_TYPES = {
    bool: ('add_adapter', 'use_intermediate_ffn_before_adapter'),
    str: ('hidden_act', 'adapter_act', 'position_embeddings_type'),
}
# Of training and of heads; sinusoids of `relative` go as far as they are needed.
_WITHOUT_EFFECT = set(
    """
    activation_dropout apply_spec_augment attention_dropout classifier_proj_size codevector_dim conformer_conv_dropout
    contrastive_logits_temperature ctc_loss_reduction ctc_zero_infinity diversity_loss_weight feat_proj_dropout
    feat_quantizer_dropout final_dropout hidden_dropout layerdrop mask_feature_length mask_feature_min_masks
    mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob max_source_positions num_codevector_groups
    num_codevectors_per_group num_negatives proj_codevector_dim tdnn_dilation tdnn_dim tdnn_kernel
    use_weighted_layer_sum xvector_output_dim
    """.split()
)
# Not padding_value: what it fills is masked.
_PREPROCESSOR = {'sampling_rate': 16_000, 'feature_size': 80, 'num_mel_bins': 80, 'stride': 2}


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Takes the encoder out of a w2v-BERT checkpoint; see `speech.convert` for what is raised."""
    return speech.convert(directory, out, *encoder(directory), 160, _name, LANDMARK, ('masked_spec_embed',))


def encoder(directory: Directory) -> tuple[W2vBertEncoder, W2vBertFrontend]:
    """The encoder that the flags describe, and its frontend; see `speech.check_flags` for what is raised."""
    file, flags = directory.path / 'config.json', directory.config
    known = _READ | _WITHOUT_EFFECT
    sizes = speech.check_flags(file, flags, _SIZES, {'feature_projection_input_dim': 160}, known)
    check_types(file, flags, _TYPES)
    if flags.get('add_adapter'):
        flags = flags | {'output_hidden_size': flags.get('output_hidden_size') or flags['hidden_size']}
        sizes |= speech.check_flags(file, flags, _ADAPTER_SIZES, {}, set(flags))
        if sizes['adapter_kernel_size'] // 2 != sizes['adapter_stride'] // 2:
            raise CheckpointError(
                f'{file}: adapter_kernel_size {sizes["adapter_kernel_size"]} with adapter_stride '
                f'{sizes["adapter_stride"]}: half of either must be the same, else the reference counts other frames '
                'than it makes.'
            )
        if sizes['adapter_dim'] % sizes['num_heads']:
            raise CheckpointError(f'{file}: num_attention_heads do not divide output_hidden_size.')
    chosen = {}
    for key, name, choices in (
        ('hidden_act', 'activation', ACTIVATIONS),
        ('adapter_act', 'adapter_activation', ACTIVATIONS),
        ('position_embeddings_type', 'positions', _POSITIONS),
    ):
        chosen[name] = flags.get(key, getattr(W2vBertConfig, name))
        if chosen[name] not in choices:
            raise CheckpointError(f'{file}: {key} is {chosen[name]!r}; there are {", ".join(map(str, choices))}.')
    epsilon = flags.get('layer_norm_eps', W2vBertConfig.norm_epsilon)
    if type(epsilon) is not float or not 0 < epsilon < math.inf:
        raise CheckpointError(f'{file}: layer_norm_eps is {epsilon!r}; it must be a number above 0.')
    speech.check_preprocessor(directory, _PREPROCESSOR)
    config = W2vBertConfig(
        **sizes,
        **chosen,
        norm_epsilon=epsilon,
        intermediate_ffn=bool(flags.get('use_intermediate_ffn_before_adapter')),
    )
    return W2vBertEncoder(config), W2vBertFrontend()


def _name(path: str) -> str:
    *module, kind = path.split('/')
    first = module[0]
    if first == 'layers':
        module[0] = 'encoder.layers.{}'
    elif first.startswith('adapter_'):
        module[0] = first.replace('adapter_', 'adapter.').replace('layers_', 'layers.')
    elif first in ('feature_layer_norm', 'feature_projection'):
        part = {'feature_layer_norm': 'layer_norm', 'feature_projection': 'projection'}[first]
        module[0] = f'feature_projection.{part}'
    if kind in ('depthwise_kernel', 'distance_embedding'):
        module.append({'depthwise_kernel': 'depthwise_conv'}.get(kind, kind))
    return '.'.join([*module, kind if kind in ('bias', 'pos_bias_u', 'pos_bias_v') else 'weight'])
