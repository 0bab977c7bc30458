"""SLM against the same computation in PyTorch, on this machine's CPU, in one run.

    pip install -e '.[hf]'
    python tests/benchmarks/bench_pytorch.py

The rival is `transformers`: `Gemma3nAudioEncoder` and `T5ForConditionalGeneration`, frozen, around an adapter written
in PyTorch, with our parameters in all three. That both compute the same is checked first: the features, the loss, and
the generated tokens. Then they take turns, twice over: both from the waveform, which the rival's
`Gemma3nAudioFeatureExtractor` makes features of, and both from features.
The adapter stacks frames and is fresh, and the clips are noise, so what is generated has no meaning but a length.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import slm_step
import torch
import transformers
from torch import nn
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder

from slm_jax import decoding, foundations

# The language model's parameters: T5X's names, then those of `transformers`.
_SELF = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_MLP = {name: f'DenseReluDense.{name}' for name in ('wi_0', 'wi_1', 'wo')}
_ENCODER = (
    ('pre_attention_layer_norm', 'attention', _SELF, 'SelfAttention.'),
    ('pre_mlp_layer_norm', 'mlp', _MLP, ''),
)
_DECODER = (
    ('pre_self_attention_layer_norm', 'self_attention', _SELF, 'SelfAttention.'),
    ('pre_cross_attention_layer_norm', 'encoder_decoder_attention', _SELF, 'EncDecAttention.'),
    ('pre_mlp_layer_norm', 'mlp', _MLP, ''),
)
# The encoder's: ours, then those of `transformers`; matrices are transposed.
_FEED_FORWARD = {
    f'{name}/{leaf}': f'{name}.weight'
    for name, leaf in (
        ('pre_layer_norm', 'scale'),
        ('ffw_layer_1', 'kernel'),
        ('ffw_layer_2', 'kernel'),
        ('post_layer_norm', 'scale'),
    )
}
_CONFORMER = {
    **{f'{part}/{ours}': f'{part}.{theirs}' for part in ('ffw_layer_start', 'ffw_layer_end')
       for ours, theirs in _FEED_FORWARD.items()},
    'pre_attention_norm/scale': 'attention.pre_attn_norm.weight',
    'post_attention_norm/scale': 'attention.post_norm.weight',
    'attention_out/kernel': 'attention.post.weight',
    'norm/scale': 'norm.weight',
    'attention/per_dim_scale': 'attention.attn.per_dim_scale',
    **{f'attention/{name}/kernel': f'attention.attn.{name}.weight' for name in ('q_proj', 'k_proj', 'v_proj')},
    'attention/pos_proj/kernel': 'attention.attn.relative_position_embedding.pos_proj.weight',
    **{f'lconv1d/{name}/scale': f'lconv1d.{name}.weight' for name in ('pre_layer_norm', 'conv_norm')},
    **{f'lconv1d/{name}/kernel': f'lconv1d.{name}.weight' for name in ('linear_start', 'linear_end')},
    'lconv1d/depthwise_kernel': 'lconv1d.depthwise_conv1d.weight',
}  # fmt: skip


def torch_encoder(config, params) -> Gemma3nAudioEncoder:
    """Gemma 3n's audio tower with the parameters (path -> array) of a `UsmEncoder`."""
    model = Gemma3nAudioEncoder(
        transformers.Gemma3nAudioConfig(
            hidden_size=config.emb_dim,
            conf_num_attention_heads=config.num_heads,
            conf_num_hidden_layers=config.num_layers,
            conf_attention_chunk_size=config.chunk_size,
            conf_attention_context_left=config.context_left,
            conf_attention_context_right=config.context_right,
            conf_reduction_factor=config.reduction_factor,
            sscp_conv_channel_size=config.subsample_channels,
        )
    ).eval()
    state = {'subsample_conv_projection.input_proj_linear.weight': params['input_proj/kernel'].T}
    for index in range(2):
        theirs, ours = f'subsample_conv_projection.conv_{index}', f'subsample_{index}'
        state[f'{theirs}.conv.weight'] = params[f'{ours}/kernel'].transpose(3, 2, 0, 1)
        state[f'{theirs}.norm.weight'] = params[f'{ours}/scale']
    for layer in range(config.num_layers):
        for ours, theirs in _CONFORMER.items():
            value = params[f'conformer/{ours}'][layer].T
            state[f'conformer.{layer}.{theirs}'] = value[:, None] if ours.endswith('depthwise_kernel') else value
    fill(model, state)
    return model


def torch_llm(config, params) -> transformers.T5ForConditionalGeneration:
    """`transformers`' T5 with the parameters (path -> array) of a `T5` in the layout that is not scanned."""
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_heads=config.num_heads,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            dropout_rate=0.0,
            feed_forward_proj='gated-gelu',
            decoder_start_token_id=0,
            tie_word_embeddings=config.logits_via_embedding,
        )
    ).eval()
    state = {'shared.weight': params['token_embedder/embedding']}
    state['lm_head.weight'] = state['shared.weight']
    if not config.logits_via_embedding:
        model.lm_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)  # the configuration ties it always
        state['lm_head.weight'] = params['decoder/logits_dense/kernel'].T
    for side, blocks, layers in (
        ('encoder', _ENCODER, config.num_encoder_layers),
        ('decoder', _DECODER, config.num_decoder_layers),
    ):
        state[f'{side}.embed_tokens.weight'] = state['shared.weight']
        state[f'{side}.final_layer_norm.weight'] = params[f'{side}/{side}_norm/scale']
        bias = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
        state[bias] = params[f'{side}/relpos_bias/rel_embedding'].T
        for layer in range(layers):
            for place, (norm, block, names, prefix) in enumerate(blocks):
                theirs, ours = f'{side}.block.{layer}.layer.{place}', f'{side}/layers_{layer}'
                state[f'{theirs}.layer_norm.weight'] = params[f'{ours}/{norm}/scale']
                for ours_name, name in names.items():
                    state[f'{theirs}.{prefix}{name}.weight'] = params[f'{ours}/{block}/{ours_name}/kernel'].T
    fill(model, state)
    return model


class _Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class _Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        joined = config.num_heads * config.head_dim
        self.heads = config.num_heads
        self.pre_attention_norm, self.pre_mlp_norm = _Norm(config.emb_dim), _Norm(config.emb_dim)
        self.query, self.key, self.value = (nn.Linear(config.emb_dim, joined, bias=False) for _ in range(3))
        self.out = nn.Linear(joined, config.emb_dim, bias=False)
        self.wi_0, self.wi_1 = (nn.Linear(config.emb_dim, config.mlp_dim, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.mlp_dim, config.emb_dim, bias=False)

    def forward(self, x, bias):
        y = self.pre_attention_norm(x)
        query, key, value = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.pre_mlp_norm(x)
        return x + self.wo(nn.functional.gelu(self.wi_0(y), approximate='tanh') * self.wi_1(y))


class TorchStack(nn.Module):
    """What adapters with reduction 'stack' begin with, in PyTorch: frames [b, t, d], lengths [b] -> slots, lengths."""

    def __init__(self, config, frame_width):
        super().__init__()
        self.config = config
        self.frames_norm = _Norm(frame_width)
        self.input_projection = nn.Linear(config.reduction_factor * frame_width, config.emb_dim, bias=False)
        self.relative = nn.Parameter(torch.empty(config.num_heads, 32))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.final_norm = _Norm(config.emb_dim)

    def filled(self, params):
        """Itself, with the parameters (path -> array) of an adapter of ours."""
        state = {'relative': params['relpos_bias/rel_embedding']}
        for path, value in params.items():
            name, _, leaf = path.rpartition('/')
            if leaf == 'rel_embedding':
                continue
            if leaf not in ('kernel', 'scale'):
                state[path.replace('/', '.')] = value
            elif name.startswith('layers/'):
                for layer, part in enumerate(value):
                    state[f'layers.{layer}.{name[7:]}.weight'] = part.T
            else:
                state[f'{name}.weight'] = value.T
        fill(self, state)
        return self

    def slots(self, frames, lengths):
        factor = self.config.reduction_factor
        batch, time, width = frames.shape
        slots = -(-time // factor)
        x = nn.functional.pad(self.frames_norm(frames), (0, 0, 0, slots * factor - time))
        x = self.input_projection(x.reshape(batch, slots, factor * width))
        lengths = -(-lengths // factor)
        places = torch.arange(slots, device=x.device)
        valid = places < lengths[:, None]
        distance = (places - places[:, None]).abs()
        far = 8 + (torch.log(distance.clamp(min=8) / 8) / np.log(16) * 8).to(torch.int64)
        bucket = torch.where(distance < 8, distance, far.clamp(max=15)) + 16 * (places > places[:, None])
        bias = self.relative[:, bucket][None] + torch.where(valid, 0.0, -1e10)[:, None, None]
        for layer in self.layers:
            x = layer(x, bias)
        return self.final_norm(x), lengths


class TorchAdapter(TorchStack):
    """`SlmAdapter` with reduction 'stack', in PyTorch: frames [b, t, d], lengths [b] -> [b, s, o], lengths."""

    def __init__(self, config, frame_width):
        super().__init__(config, frame_width)
        self.output_norm = _Norm(config.output_dim)
        self.output_projection = nn.Linear(config.emb_dim, config.output_dim, bias=False)

    def forward(self, frames, lengths):
        x, lengths = self.slots(frames, lengths)
        x = self.output_norm(self.output_projection(x))
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return torch.where(valid[:, :, None], x, 0.0), lengths


def fill(model, state) -> None:
    """Sets all parameters of a module of theirs: name -> array."""
    own = dict(model.named_parameters(remove_duplicate=False))
    if own.keys() != state.keys():
        raise ValueError(f'{type(model).__name__}: {sorted(own.keys() ^ state.keys())} are not in both')
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(torch.from_numpy(np.array(value, np.float32)))


class TorchSlm(nn.Module):
    """The three parts as SLM joins them; speech first, then the instruction."""

    def __init__(self, system, params):
        super().__init__()
        parts = {name: foundations.flatten(part) for name, part in params.items()}
        encoder = {
            p.removeprefix('encoder/'): v for p, v in parts['speech_encoder'].items() if p.startswith('encoder/')
        }
        self.encoder = torch_encoder(system.speech_encoder.encoder.config, encoder).requires_grad_(False)
        self.llm = torch_llm(system.llm.config, parts['llm']).requires_grad_(False)
        width = system.speech_encoder.encoder.config.emb_dim
        self.adapter = TorchAdapter(system.adapter.config, width).filled(parts['adapter'])

    def prompt(self, features, feature_lengths, tokens):
        """Embeddings and mask for the LLM's encoder. Rows keep a gap between speech and text: relative positions
        there are the rival's own business, so every clip of this benchmark is of the same length."""
        with torch.no_grad():
            beyond = torch.arange(features.shape[1], device=features.device) >= feature_lengths[:, None]
            frames = self.encoder(features, beyond)
        lengths = (~frames.audio_mel_mask).sum(1)
        speech, lengths = self.adapter(frames.last_hidden_state, lengths)
        return torch.cat([speech, self.llm.shared(tokens)], 1), torch.cat(
            [torch.arange(speech.shape[1], device=speech.device) < lengths[:, None], tokens > 0], 1
        )

    def loss(self, features, feature_lengths, tokens, inputs, targets):
        embeddings, mask = self.prompt(features, feature_lengths, tokens)
        return self.llm(
            inputs_embeds=embeddings, attention_mask=mask.long(), decoder_input_ids=inputs,
            labels=targets.maskedfill(targets == 0, -100),
        ).loss  # fmt: skip

    @torch.no_grad()
    def generate(self, features, feature_lengths, tokens, length, beams):
        embeddings, mask = self.prompt(features, feature_lengths, tokens)
        return self.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            max_new_tokens=length,
            num_beams=beams,
            do_sample=False,
        )[:, 1:]


def in_turns(candidates: dict, rounds: int) -> dict[str, float]:
    """Median seconds of each candidate, called one after another, `rounds` times over, after one call to warm up."""
    seconds = {name: [] for name in candidates}
    for function in candidates.values():
        function()
    for _ in range(rounds):
        for name, function in candidates.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def torch_frontend(frontend) -> Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor]]:
    """`transformers`' feature extractor with the settings of a `UsmFrontend`: samples of clips of one length ->
    features, lengths."""
    bins = frontend.num_mel_bins
    extractor = transformers.Gemma3nAudioFeatureExtractor(
        feature_size=bins,
        per_bin_mean=[frontend.mean] * bins,
        per_bin_stddev=[frontend.stddev] * bins,
    )

    def features(samples):
        made = extractor(list(samples.astype(np.float32) / 32768), return_tensors='pt')
        return made['input_features'].float(), made['input_features_mask'].sum(1)

    return features


def main() -> None:
    args = slm_step.parse_arguments(__doc__)
    system, params, batch = slm_step.model_and_batch(args)
    system = dataclasses.replace(system, speech_encoder=system.speech_encoder.clone(augmentation=None))
    frontend = system.speech_encoder.frontend

    rival = TorchSlm(system, jax.tree.map(np.asarray, params))
    their_frontend = torch_frontend(frontend)
    features, feature_lengths = map(np.asarray, jax.jit(frontend)(batch['speech_samples'], batch['speech_lengths']))
    samples = batch['speech_samples']
    their_features = their_frontend(samples)
    difference = np.abs(their_features[0].numpy() - features).max()
    print(f'features: {difference:.1e} apart at most')
    if difference > 1e-4:
        raise SystemExit('they do not compute the same: no comparison')
    tokens, *targets = [
        torch.from_numpy(batch[f'{name}_tokens'].astype(np.int64))
        for name in ('encoder_input', 'decoder_input', 'decoder_target')
    ]

    ours_loss = float(jax.jit(lambda p: system.loss(p, batch, None)[0])(params))
    with torch.no_grad():
        their_loss = float(rival.loss(*their_features, tokens, *targets))
    print(f'loss: slm_jax {ours_loss:.6f}, PyTorch {their_loss:.6f}')
    if abs(ours_loss - their_loss) > 1e-4 * ours_loss:
        raise SystemExit('they do not compute the same: no comparison')

    print(f'{args.rows} clips of {args.seconds} s, {torch.get_num_threads()} threads, median of {args.rounds} rounds')
    given = (
        dataclasses.replace(system, speech_encoder=system.speech_encoder.clone(frontend=_given)),
        batch | {'speech_samples': features, 'speech_lengths': feature_lengths},
    )
    for start, (ours, fed), theirs in (
        ('the waveform', (system, batch), lambda: their_frontend(samples)),
        ('features', given, lambda: their_features),
    ):
        candidates = _candidates(ours, params, fed, rival, theirs, tokens, targets)
        if start == 'the waveform':  # The rival's adapter has not been trained yet.
            written, tokens_written = (
                candidates['greedy']['ours'](),
                candidates['greedy']['theirs'](),
            )
            steps = tokens_written.shape[1]
            same = (written[:, :steps] == tokens_written.numpy()).all(axis=1)
            print(f'greedy: {same.mean():.0%} of the rows have the same tokens; {steps} steps')
        for name, pair in candidates.items():
            seconds = in_turns(pair, args.rounds)
            print(
                f'{name}, from {start}: slm_jax {seconds["ours"]:.3f} s, PyTorch {seconds["theirs"]:.3f} s: '
                f'{seconds["theirs"] / seconds["ours"]:.2f} times as fast'
            )


def _given(features, lengths):
    """The frontend of who has features already."""
    return features, lengths


def _candidates(system, params, batch, rival, features, tokens, targets) -> dict[str, dict]:
    """What is compared: {name: {'ours': function, 'theirs': function}}; `features` makes the rival's."""
    step, state, frozen, _ = slm_step.training(system, params)
    step = jax.jit(step, donate_argnums=0)
    their_optimizer = torch.optim.AdamW(rival.adapter.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.0)

    def train_ours():
        nonlocal state
        state, scalars = step(state, frozen, batch)
        jax.block_until_ready(scalars)

    def train_theirs():
        their_optimizer.zero_grad()
        rival.loss(*features(), tokens, *targets).backward()
        nn.utils.clip_grad_norm_(rival.adapter.parameters(), 1.0)
        their_optimizer.step()

    candidates = {'training step': {'ours': train_ours, 'theirs': train_theirs}}
    for name, method, beams in (('greedy', 'greedy', 1), ('beam of 4', 'beam', 4)):
        config = decoding.DecodeConfig(method=method, max_decode_length=64, beam_size=beams)
        predict = jax.jit(functools.partial(system.predict, decode=config))
        candidates[name] = {
            'ours': lambda predict=predict: np.asarray(predict(params, batch)),
            'theirs': lambda beams=beams: rival.generate(*features(), tokens, 64, beams),
        }
    return candidates


if __name__ == '__main__':
    main()
