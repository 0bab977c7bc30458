"""Makes the goldens of this folder with `transformers` and PyTorch: pip install -e .[hf]; python make.py

A folder each of small random models as `save_pretrained` leaves them, with a tokenizer of its family's kind and
outputs.npz: a batch with padding, the logits, and what `generate` writes greedily and with four beams.
"""

import io
import json
import pathlib

import numpy as np
import sentencepiece
import torch
import transformers

HERE = pathlib.Path(__file__).parent
# Not more layers in the decoder: transformers 5 then cannot generate with its cache.
SIZES = dict(
    d_model=12, d_kv=4, d_ff=16, num_heads=2, num_layers=3, num_decoder_layers=2, vocab_size=176,
    decoder_start_token_id=0,
)  # fmt: skip
# By family: model class, what differs in the configuration, whether the output layer is its own, and a seed with which
# the sequences that are generated do not all end at once.
FAMILIES = {
    't5_1_0': ('T5', dict(feed_forward_proj='relu'), False, 0),
    't5_1_1': ('T5', dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False), True, 1),
    'mt5': ('MT5', dict(tie_word_embeddings=False), True, 7),
    'umt5': ('UMT5', dict(tie_word_embeddings=False), True, 0),
    'byt5': ('T5', dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False, vocab_size=384), True, 2),
}
MAX_LENGTH = 9
TEXTS = ['the line is held', 'three new messages', 'good morning', 'one two three four']


def random_model(class_name: str, settings: dict, own_head: bool, seed: int, **sizes):
    """A model whose parameters are all far from their initial values, so that nothing can be left out unseen."""
    config = getattr(transformers, f'{class_name}Config')(**(SIZES | settings | sizes))
    torch.manual_seed(seed)
    model = getattr(transformers, f'{class_name}ForConditionalGeneration')(config).eval()
    # What the public checkpoints mean by it; transformers 5 forgets it for UMT5 (see importers/hugging_face/t5.py).
    model.config.tie_word_embeddings = settings.get('tie_word_embeddings', True)
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for name, parameter in model.named_parameters():
        head = 'lm_head' in name or ('shared' in name and not own_head)
        if parameter.ndim == 1:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
        elif 'shared' in name or 'relative' in name:
            parameter.data = torch.randn_like(parameter) * (0.3 if head else 1.0)
        else:
            parameter.data = torch.randn_like(parameter) * (0.3 if head else 1.0) * parameter.shape[-1] ** -0.5
        if head:
            parameter.data[1] *= 25  # an end is certain or impossible; see `outputs`
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    return model


def outputs(model, rows: int = 3, length: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    """What the reference makes of a random batch of odd lengths.

    Beam search agrees with T5X's, which is ours, under two conditions. No length penalty: T5X divides by
    ((5 + length) / 6) ** alpha, transformers by length ** length_penalty. And no sequence that ends while it ranks
    fifth to eighth, or while another is cut off at the end: T5X keeps the former and transformers drops it; of the
    latter T5X takes what ended and transformers what is likelier.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, model.config.vocab_size, (rows, length))
    lengths = rng.integers(1, length + 1, rows)
    lengths[0] = length
    tokens *= np.arange(length) < lengths[:, None]
    targets = rng.integers(1, model.config.vocab_size, (rows, 7))
    batch = {'input_ids': torch.tensor(tokens), 'attention_mask': torch.tensor(tokens > 0).long()}
    decoder_input = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    options = dict(max_new_tokens=MAX_LENGTH, do_sample=False)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=torch.tensor(decoder_input)).logits
        greedy = model.generate(**batch, num_beams=1, **options)
        beams = model.generate(**batch, num_beams=4, length_penalty=0.0, early_stopping='never', **options)

    def generated(found):
        found = found[:, 1:].numpy()
        found *= np.cumsum(found == 1, axis=1) - (found == 1) == 0  # beams are padded with the end, as 0 is false
        return np.pad(found, ((0, 0), (0, MAX_LENGTH - found.shape[1])))

    return {
        'encoder_input_tokens': tokens.astype(np.int32), 'decoder_input_tokens': decoder_input.astype(np.int32),
        'decoder_target_tokens': targets.astype(np.int32), 'logits': logits.numpy(), 'greedy': generated(greedy),
        'beams': generated(beams),
    }  # fmt: skip


def log_probability(model, encoder_tokens: np.ndarray, tokens: np.ndarray) -> float:
    """Of one sequence up to its end, under the reference: tells which of two beam searches found the better."""
    tokens = tokens[: (tokens == 1).argmax() + 1] if (tokens == 1).any() else tokens
    encoder = torch.tensor(encoder_tokens[None]).long()
    with torch.no_grad():
        logits = model(
            input_ids=encoder, attention_mask=(encoder > 0).long(),
            decoder_input_ids=torch.tensor(np.pad(tokens, (1, 0))[None, :-1]).long(),
        ).logits[0]  # fmt: skip
    return float(torch.log_softmax(logits, -1)[torch.arange(len(tokens)), torch.tensor(tokens).long()].sum())


def save(model, family: str, directory: pathlib.Path, **options) -> None:
    """As a public directory of this family is: weights, config.json of transformers 4, tokenizer."""
    model.save_pretrained(directory, **options)
    path = directory / 'config.json'
    config = json.loads(path.read_text())
    config.pop('scale_decoder_outputs', None)
    config['tie_word_embeddings'] = FAMILIES[family][1].get('tie_word_embeddings', True)
    settings = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': {'mt5': 0, 'umt5': 20}.get(family, 100)}
    if family == 'byt5':
        settings = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 125}
        config['tokenizer_class'] = 'ByT5Tokenizer'
    else:
        sentinels = [f'▁<extra_id_{i}>' for i in reversed(range(100))] if family == 'mt5' else []
        (directory / 'spiece.model').write_bytes(tokenizer(sentinels))
    path.write_text(json.dumps(config, indent=2) + '\n')
    (directory / 'tokenizer_config.json').write_text(json.dumps(settings, indent=2) + '\n')
    (directory / 'README.md').write_text('---\nlanguage: en\nlicense: apache-2.0\n---\nA random model.\n')


def tokenizer(sentinels: list[str]) -> bytes:
    """A SentencePiece model with T5's special ids and, as mT5's, sentinels for last pieces."""
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=model, vocab_size=40, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name='identity', minloglevel=2,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for piece in sentinels:
        proto.pieces.add(piece=piece, score=0.0, type=proto.SentencePiece.USER_DEFINED)
    return proto.SerializeToString()


if __name__ == '__main__':
    for family, settings in FAMILIES.items():
        model = random_model(*settings)
        save(model, family, HERE / family)
        np.savez_compressed(HERE / family / 'outputs.npz', **outputs(model, seed=settings[-1]))
