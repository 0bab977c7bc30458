"""What the authors' released code computes for `tests/systems/tiny_comsl.py`: `python make.py CHECKOUT`.

CHECKOUT is one of github.com/nethermanpro/ComSL. Needs PyTorch, transformers and what that code imports; packages that
it imports and does not use here are replaced by empty ones. Its modules are the reference, their sizes are made small.
"""

import pathlib
import sys
import types

import numpy as np

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER.parents[1] / 'systems'), str(FOLDER.parents[2])]
TERMS = ('asr', 'mt', 'st', 'asr_mix', 'mtp', 'st_mix')  # in the order in which the criterion computes them


def modules(checkout):
    """(ComSL_model, model_util, mix_criterions, Whisper.model) of a checkout."""
    import torch

    class Metric(torch.nn.Module):
        def __init__(self, **unused):
            super().__init__()

    for name, content in (('ffmpeg', {}), ('torchmetrics', {'SumMetric': Metric})):
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(content)
    sys.path.insert(0, str(checkout))
    import Whisper.model
    from criterion import mix_criterions
    from model import ComSL_model, model_util

    return ComSL_model, model_util, mix_criterions, Whisper.model


def weights(leaves):
    """Our leaves in PyTorch's names and layouts, which is a linear map: of parameters as of gradients."""
    found = {}

    def linear(name, path, layer=None, joined=True):
        for ours, theirs in (('kernel', 'weight'), ('bias', 'bias')):
            if f'{path}/{ours}' in leaves:
                value = leaves[f'{path}/{ours}']
                value = value if layer is None else value[layer]
                found[f'{name}.{theirs}'] = value.T if ours == 'kernel' else value

    def norm(name, path, layer=None):
        for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
            value = leaves[f'{path}/{ours}']
            found[f'{name}.{theirs}'] = value if layer is None else value[layer]

    speech = 'speech_encoder/encoder'
    for number in (1, 2):
        found[f'whisper.conv{number}.weight'] = leaves[f'{speech}/conv{number}/kernel'].transpose(2, 1, 0)
        found[f'whisper.conv{number}.bias'] = leaves[f'{speech}/conv{number}/bias']
        kernel, bias = (leaves[f'adapter/conv_{number}/{name}'] for name in ('kernel', 'bias'))
        name = f'down{number}.layers.0'
        found[f'{name}.weight'] = kernel.reshape(*kernel.shape[:2], -1).transpose(2, 1, 0)
        found[f'{name}.bias'] = bias.reshape(-1)
    found['whisper.positional_embedding'] = leaves[f'{speech}/embed_positions']
    norm('whisper.ln_post', f'{speech}/layer_norm')
    for layer in range(2):
        ours, theirs = f'{speech}/layers', f'whisper.blocks.{layer}'
        for name, path in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj'), ('out', 'out_proj')):
            linear(f'{theirs}.attn.{name}', f'{ours}/self_attn/{path}', layer)
        norm(f'{theirs}.attn_ln', f'{ours}/self_attn_layer_norm', layer)
        norm(f'{theirs}.mlp_ln', f'{ours}/final_layer_norm', layer)
        linear(f'{theirs}.mlp.0', f'{ours}/fc1', layer)
        linear(f'{theirs}.mlp.2', f'{ours}/fc2', layer)
    for ours, theirs in (('before', 'proj'), ('after', 'post_proj')):
        linear(f'down1.{theirs}.0', f'adapter/{ours}/wi')
        linear(f'down1.{theirs}.2', f'adapter/{ours}/wo')
        norm(f'down1.{theirs}_ln', f'adapter/{ours}/norm')
    found['mbart.shared.weight'] = leaves['llm/token_embedder/embedding']
    for side, attentions in (
        ('encoder', {'attention': 'self_attn'}),
        ('decoder', {'self_attention': 'self_attn', 'encoder_decoder_attention': 'encoder_attn'}),
    ):
        found[f'mbart.{side}.embed_positions.weight'] = leaves[f'llm/{side}/position_embedder/embedding']
        norm(f'mbart.{side}.layernorm_embedding', f'llm/{side}/embedding_layer_norm')
        norm(f'mbart.{side}.layer_norm', f'llm/{side}/{side}_norm')
        for layer in range(2):
            ours, theirs = f'llm/{side}/layers', f'mbart.{side}.layers.{layer}'
            for path, name in attentions.items():
                for each, projection in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'out')):
                    linear(f'{theirs}.{name}.{projection}_proj', f'{ours}/{path}/{each}', layer)
                before = path.replace('encoder_decoder', 'cross')
                norm(f'{theirs}.{name}_layer_norm', f'{ours}/pre_{before}_layer_norm', layer)
            norm(f'{theirs}.final_layer_norm', f'{ours}/pre_mlp_layer_norm', layer)
            linear(f'{theirs}.fc1', f'{ours}/mlp/wi', layer)
            linear(f'{theirs}.fc2', f'{ours}/mlp/wo', layer)
    return found


def built(checkout, leaves, teacher=None):
    """(the authors' model with these parameters, its criterion class, parameters by our names for them)."""
    import tiny_comsl as tiny
    import torch
    import transformers

    comsl, util, criterion, whisper = modules(checkout)
    llm, speech = tiny.LLM, tiny.SPEECH

    def mbart():
        model = transformers.MBartForConditionalGeneration(
            transformers.MBartConfig(
                vocab_size=llm.vocab_size, d_model=llm.emb_dim, max_position_embeddings=llm.max_positions,
                encoder_layers=llm.num_encoder_layers, decoder_layers=llm.num_decoder_layers,
                encoder_attention_heads=llm.num_heads, decoder_attention_heads=llm.num_heads,
                encoder_ffn_dim=llm.mlp_dim, decoder_ffn_dim=llm.mlp_dim, scale_embedding=True, dropout=0.0,
                attention_dropout=0.0, activation_dropout=0.0, pad_token_id=0, bos_token_id=2, eos_token_id=1,
                decoder_start_token_id=1, forced_eos_token_id=None,
            )
        )  # fmt: skip
        for side in (model.model.encoder, model.model.decoder):
            side.embed_scale = 1.0  # the embedding itself scales since transformers 4.39
        return model

    made = [mbart(), *([mbart()] if teacher else [])]
    remaining = iter(made)
    comsl.load_mbart_model = lambda *unused, **also_unused: next(remaining)
    dims = whisper.ModelDimensions(
        80, 1500, speech.emb_dim, speech.num_heads, speech.num_layers, 50, 10, speech.emb_dim, speech.num_heads, 1
    )
    comsl.Whisper.load_model = lambda *unused, **also_unused: whisper.Whisper(dims)
    config = types.SimpleNamespace(
        whisper_name='tiny', cache_dir='', spch_init_model_path=None, language_init_model_path=None,
        language_regularization_model_path='teacher' if teacher else None, use_acti_ckpt=False, spch_n_layers=0,
        erm_layer=1, use_cml=True, use_erm=True, enc_grad_mult=2.0, disable_spch_grad_epoch=0, asr_loss_weight=0.35,
        spch_loss_weight=0.35, text_loss_weight=0.2, cml_loss_weight=0.1, erm_loss_weight=0.2, guide_alpha=0.8,
        text_alpha=0.2,
    )  # fmt: skip
    model = comsl.ComSTModel(config)
    speech_side = model.encoder.spch_encoder
    # Their width is 1024 in the code.
    speech_side.down_sampler1 = util.Conv1dAdaptor(speech.emb_dim, llm.emb_dim, n_layers=1, proj=True)
    speech_side.down_sampler2 = util.Conv1dAdaptor(llm.emb_dim, llm.emb_dim, n_layers=1)
    parts = {'whisper': speech_side.spch_encoder, 'down1': speech_side.down_sampler1}
    parts |= {'down2': speech_side.down_sampler2, 'mbart': made[0].model}

    def fill(parts, values):
        named = {f'{part}.{name}': value for part, module in parts.items() for name, value in module.named_parameters()}
        named |= {f'{part}.{name}': value for part, module in parts.items() for name, value in module.named_buffers()}
        filled = {name: value for name, value in named.items() if name in values}
        assert named.keys() == filled.keys(), named.keys() - filled.keys()
        with torch.no_grad():
            for name, value in filled.items():
                value.copy_(torch.tensor(np.array(values[name])))
        return {name: value for name, value in filled.items() if isinstance(value, torch.nn.Parameter)}

    named = fill(parts, weights(leaves))
    if teacher:
        fill({'mbart': made[1].model}, weights(leaves | {f'llm{path[7:]}': x for path, x in teacher.items()}))
    model.train()
    return model, criterion.GuidedCrossEntMultiTaskCriterion, config, named


def reference(checkout, leaves, mel, batch, masked, teacher=None):
    """{term: (value, {PyTorch's name: gradient})} by the authors' model and criterion; also 'loss'.

    Args:
        checkout: of the authors' code.
        leaves, teacher: {our path: array}, of all parameters, and of those of a teacher.
        mel: features of the window [b, frames, 80].
        batch: of `tiny_comsl`.
        masked: which tokens of the transcripts are masked.
    """
    import tiny_comsl as tiny
    import torch

    model, criterion, config, named = built(checkout, leaves, teacher)
    seen = []

    class Recorded(criterion):
        def compute_loss_and_acc(self, *args, **kwargs):
            seen.append(super().compute_loss_and_acc(*args, **kwargs))
            return seen[-1]

        def guide_loss_and_acc(self, *args, **kwargs):
            seen.append(super().guide_loss_and_acc(*args, **kwargs))
            return seen[-1]

    def tensor(rows):
        return torch.tensor(np.array(rows)).long()

    source = tiny.padded([[tiny.FRENCH, *text] for text in tiny.TRANSCRIPTS], masked.shape[1])
    target = batch['decoder_target_tokens']
    which = torch.tensor(masked)
    source, target = tensor(source), tensor(target)
    labels = [torch.nn.functional.pad(each[:, 1:], (0, 1)) for each in (source, target)]
    sample = {
        'net_input': {
            'mel': torch.tensor(np.array(mel)).transpose(1, 2), 'src_lang_ids': source[:, 0],
            'tokens': [source, target], 'masked_src_tokens': source.masked_fill(which, tiny.MASK),
            'mlm_mask': torch.roll(which, -1, dims=1),
        },
        'target': labels,
    }  # fmt: skip
    loss, _, (decoded, _) = Recorded(config, 0)(model, sample)
    values = dict(zip(TERMS, (each[0] for each in seen), strict=True))
    values |= {'erm': decoded[1]['erm_loss'].sum(), 'loss': loss}
    result = {}
    for name, value in values.items():
        gradients = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
        result[name] = (
            value.item(),
            {
                path: np.zeros(leaf.shape, np.float32) if gradient is None else gradient.numpy()
                for (path, leaf), gradient in zip(named.items(), gradients)
            },
        )
    return result


def features(comsl, batch):
    """The log-mel features of the whole window, which both read."""
    import jax.numpy as jnp

    longest = round(16_000 * comsl.max_seconds)
    mel, _ = comsl.speech_encoder.frontend(
        jnp.pad(batch['speech_samples'], ((0, 0), (0, longest - batch['speech_samples'].shape[1]))),
        jnp.full(len(batch['speech_lengths']), longest),
    )
    return np.asarray(mel)[:, : longest // 160]


def summed_up(gradients):
    """A gradient in two numbers a parameter: its norm, and its product with fixed random numbers."""
    rng = np.random.default_rng(0)
    rows = [(np.linalg.norm(x), np.sum(x * rng.standard_normal(x.shape))) for _, x in sorted(gradients.items())]
    return np.array(rows, np.float32)


def main(checkout):
    """Writes `values.npz`: of each term its value and gradient."""
    import tiny_comsl as tiny

    from slm_jax.foundations import flatten

    comsl = tiny.system(reference_quirks=True)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(tiny.params(comsl)).items()}
    batch = tiny.batch()
    arrays = {}
    for name, (value, gradients) in reference(checkout, leaves, features(comsl, batch), batch, tiny.masked(8)).items():
        arrays[f'{name}/value'], arrays[f'{name}/gradient'] = np.float32(value), summed_up(gradients)
    np.savez_compressed(FOLDER / 'values.npz', **arrays)


if __name__ == '__main__':
    main(sys.argv[1])
