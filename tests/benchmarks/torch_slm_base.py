"""slm_base in PyTorch, as the rival of bench_slm_base.py: `transformers`' Whisper encoder and Qwen2 with SDPA.

Between them is our adapter that writes tokens by CTC, with our parameters. Rows are joined without padding between
their parts, only the logits of target tokens are computed, and what is frozen has no gradients: all that makes it fast.
"""

import bench_pytorch
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from slm_jax import foundations
from slm_jax.data.prompts import SPEECH

# The language model's parameters: ours, then those of `transformers`.
_LAYER = {
    'pre_self_attention_layer_norm/scale': 'input_layernorm.weight',
    'pre_mlp_layer_norm/scale': 'post_attention_layernorm.weight',
    **{
        f'self_attention/{ours}/{leaf}': f'self_attn.{theirs}_proj.{name}'
        for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o'))
        for leaf, name in (('kernel', 'weight'), ('bias', 'bias'))
        if (ours, leaf) != ('out', 'bias')
    },
    **{
        f'mlp/{ours}/kernel': f'mlp.{theirs}_proj.weight'
        for ours, theirs in (('wi_0', 'gate'), ('wi_1', 'up'), ('wo', 'down'))
    },
}


def whisper(directory) -> nn.Module:
    """The encoder, frozen, with the values that a foundation of ours has, which is stored in bfloat16."""
    encoder = transformers.WhisperModel.from_pretrained(directory, dtype=torch.float32).encoder.requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.copy_(parameter.bfloat16())
    return encoder.eval()


def qwen(config, params) -> transformers.Qwen2ForCausalLM:
    """Qwen2 with the parameters of our language model, frozen. Its ids are ours."""
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.emb_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={'rope_type': 'default', 'rope_theta': config.rope_theta},
            tie_word_embeddings=False,
            attn_implementation='sdpa',
        )
    )
    leaves = foundations.flatten(params)
    state = {
        'model.norm.weight': leaves['decoder/decoder_norm/scale'],
        'model.embed_tokens.weight': leaves['token_embedder/embedding'],
        'lm_head.weight': leaves['decoder/logits_dense/kernel'].T,
    }
    for ours, theirs in _LAYER.items():
        for layer, value in enumerate(leaves[f'decoder/layers/{ours}']):
            state[f'model.layers.{layer}.{theirs}'] = value.T
    bench_pytorch.fill(model, state)
    return model.requires_grad_(False).eval()


class TokenCtc(bench_pytorch.TorchStack):
    """`TokenCtcAdapter`; the labels' embeddings [v - 1, o] are made once."""

    def __init__(self, config, frame_width: int, labels: torch.Tensor):
        super().__init__(config, frame_width)
        self.query_projection = nn.Linear(config.emb_dim, config.output_dim, bias=False)
        self.residual_projection = nn.Linear(config.emb_dim, config.output_dim, bias=False)
        self.blank = nn.Linear(config.emb_dim, 1)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.labels = labels
        self.directions = functional.normalize(labels - labels.mean(0), dim=-1)
        counts = torch.tensor(config.label_counts, dtype=torch.float64) + 1
        self.log_shares = (counts / counts.sum()).log().float()

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        """The segments of each row."""
        x, lengths = self.slots(frames, lengths)
        query = self.query_projection(x)
        query = query / (1 + query.square().sum(-1, keepdim=True)).sqrt()
        logits = self.logit_scale.exp() * query @ self.directions.T + self.log_shares
        spelt = logits.softmax(-1) @ self.labels + self.residual_projection(x)
        best, likeliest = logits.max(-1)
        written = torch.where(self.blank(x)[..., 0] >= best, 0, likeliest + 1)
        return [self._segments(*row) for row in zip(spelt, written, lengths.tolist())]

    @staticmethod
    def _segments(spelt: torch.Tensor, labels: torch.Tensor, length: int) -> torch.Tensor:
        labels = labels[:length]
        kept = labels != 0 if labels.any() else torch.ones_like(labels, dtype=torch.bool)
        new = kept & (labels != functional.pad(labels[:-1], (1, 0), value=-1))
        run = (new.cumsum(0) - 1)[kept]
        sums = spelt.new_zeros(int(new.sum()), spelt.shape[-1]).index_add(0, run, spelt[:length][kept])
        return sums / run.bincount()[:, None]


class TorchSlm(nn.Module):
    """The three parts: prompts have their speech where the mark is."""

    def __init__(self, system, params, encoder: nn.Module, llm: transformers.Qwen2ForCausalLM):
        super().__init__()
        self.encoder, self.llm = encoder, llm
        labels = llm.get_input_embeddings()(torch.tensor(system.label_tokens[1:]))
        adapter = foundations.flatten(params['adapter'])
        width = system.speech_encoder.encoder.config.emb_dim
        self.adapter = TokenCtc(system.adapter.config, width, labels).filled(adapter)

    @torch.no_grad()
    def hear(self, features: torch.Tensor) -> torch.Tensor:
        """Frames of windows shorter than 30 s, which `transformers` refuses: its positions are cut."""
        config, positions = self.encoder.config, self.encoder.embed_positions
        config.max_source_positions = positions.num_embeddings = features.shape[-1] // 2
        return self.encoder(features).last_hidden_state

    def loss(self, frames: torch.Tensor, lengths: torch.Tensor, batch: dict[str, np.ndarray]) -> torch.Tensor:
        """Mean cross-entropy of the batch's targets; `lengths` are of the frames."""
        embed = self.llm.get_input_embeddings()
        valid = torch.arange(frames.shape[1]) < lengths[:, None]
        speech = self.adapter(torch.where(valid[:, :, None], frames, 0), lengths)
        rows, asked, wanted = [], [], []
        for number, (prompt, target) in enumerate(zip(batch['encoder_input_tokens'], batch['decoder_target_tokens'])):
            prompt, target = prompt[prompt != 0], target[target != 0]
            place = prompt.tolist().index(SPEECH)
            before, after, written = map(_ids, (prompt[:place], prompt[place + 1 :], target))
            row = torch.cat([embed(before), speech[number], embed(after), embed(written[:-1])])
            rows.append(row)
            asked.append(len(row) - len(written) + torch.arange(len(written)))
            wanted.append(written)
        mask = rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        x = self.llm.model(inputs_embeds=rnn.pad_sequence(rows, batch_first=True), attention_mask=mask, use_cache=False)
        x = torch.cat([hidden[places] for hidden, places in zip(x.last_hidden_state, asked)])
        return functional.cross_entropy(self.llm.lm_head(x), torch.cat(wanted))


def _ids(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


@torch.no_grad()
def generate(llm: transformers.Qwen2ForCausalLM, prompts: list[torch.Tensor], length: int) -> torch.Tensor:
    """Greedy tokens after prompts of embeddings [n, e], with a cache."""
    mask = [torch.ones(len(prompt), dtype=torch.long) for prompt in prompts]
    padded, mask = (rnn.pad_sequence(each, batch_first=True, padding_side='left') for each in (prompts, mask))
    return llm.generate(
        inputs_embeds=padded,
        attention_mask=mask,
        max_new_tokens=length,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=0,
        eos_token_id=[1, 0],
    )
