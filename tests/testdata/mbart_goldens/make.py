"""Makes the goldens of this folder with `transformers` and PyTorch: pip install -e .[hf]; python make.py

mbart50 is a small random model as `save_pretrained` leaves it, with the SentencePiece file and the settings that public
directories have; tokenizer.json beside it is the tokenizer alone as transformers 5 writes it. outputs.npz: a batch with
padding, hidden states, logits, weights of the attention to the encoder, and what `generate` writes into two languages
greedily and with five beams; texts.json: texts and their ids. Ids are the reference's: 0 begins, 1 pads, 2 ends, 3 is
unknown.
"""

import io
import json
import pathlib
import tempfile

import numpy as np
import sentencepiece
import torch
import transformers

HERE = pathlib.Path(__file__).parent
DIRECTORY = HERE / 'mbart50'
# Those of mBART-50, but small.
SIZES = dict(
    d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_layers=2, decoder_layers=2, max_position_embeddings=24, activation_function='gelu', scale_embedding=True,
    decoder_start_token_id=2, add_final_layer_norm=True, normalize_before=True,
)  # fmt: skip
TEXTS = ['the line is held', 'drei neue Nachrichten', 'good morning', 'один два три', '日本語 の 一 行', 'ça va ﬁne']
ODD = ['a  b', ' good  line ', '', 'zebra ☃', 'one\ttwo', 'ｇood']
# Of mBART's normalisation, a few lines: code points, tab, what they become.
RULES = ''.join(
    f'{ord(letter):X}\t{" ".join(f"{ord(each):X}" for each in becomes)}\n'
    for letter, becomes in (('ﬁ', 'fi'), ('ｇ', 'g'), ('\t', ' '))
)
LANGUAGES = ('de_DE', 'ja_XX')
MAX_LENGTH = 9


def random_model(seed: int, **changes):
    """A model whose parameters are all far from their initial values, so that nothing can be left out unseen."""
    config = transformers.MBartConfig(**(SIZES | changes))
    torch.manual_seed(seed)
    model = transformers.MBartForConditionalGeneration(config).eval()
    model.final_logits_bias.data = torch.randn_like(model.final_logits_bias) * 0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data = torch.randn_like(parameter) * 0.3 + ('norm' in name and name.endswith('weight'))
        else:
            scale = 1.0 if 'positions' in name else 0.25 if 'shared' in name else 3 * parameter.shape[-1] ** -0.5
            parameter.data = torch.randn_like(parameter) * scale
        if 'shared' in name:
            parameter.data[2] *= 12  # an end is certain or impossible; see t5_goldens/make.py
    # Without the forced end at the limit that mBART-50 has: what is cut has none here.
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2
    )
    return model


def outputs(model, languages: dict[str, int], rows: int = 3, length: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    """What the reference makes of a random batch of odd lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, model.config.vocab_size, (rows, length))
    lengths = rng.integers(2, length + 1, rows)
    lengths[0] = length
    place = np.arange(length)
    tokens = np.where(place == lengths[:, None] - 1, 2, np.where(place < lengths[:, None], tokens, 1))
    targets = rng.integers(4, model.config.vocab_size, (rows, 7))
    targets[:, 0] = [*languages.values()][0]
    decoder_input = np.pad(targets, ((0, 0), (1, 0)), constant_values=2)[:, :-1]
    batch = {'input_ids': torch.tensor(tokens), 'attention_mask': torch.tensor(tokens != 1).long()}
    options = dict(max_new_tokens=MAX_LENGTH, do_sample=False)
    result = {}
    with torch.no_grad():
        for language, number in languages.items():
            options['forced_bos_token_id'] = number
            result[f'greedy_{language}'] = model.generate(**batch, num_beams=1, **options)
            result[f'beams_{language}'] = model.generate(
                **batch, num_beams=5, length_penalty=0.0, early_stopping='never', **options
            )
        model.double()  # logits of up to 25: in float32 the reference itself is off by half the tolerance
        found = model(**batch, decoder_input_ids=torch.tensor(decoder_input), output_hidden_states=True)
        unmasked = model(
            input_ids=batch['input_ids'], attention_mask=torch.ones_like(batch['input_ids']),
            decoder_input_ids=torch.tensor(decoder_input),
        ).logits  # fmt: skip
        model.set_attn_implementation('eager')  # the one that returns them
        attended = model(**batch, decoder_input_ids=torch.tensor(decoder_input), output_attentions=True)

    def generated(found):
        found = found[:, 1:].numpy()
        found = np.where(np.cumsum(found == 2, axis=1) - (found == 2) == 0, found, 1)
        return np.pad(found, ((0, 0), (0, MAX_LENGTH - found.shape[1])), constant_values=1).astype(np.int32)

    return {
        'encoder_input_tokens': tokens.astype(np.int32), 'decoder_input_tokens': decoder_input.astype(np.int32),
        'hidden_states': torch.stack(found.encoder_hidden_states).float().numpy(),
        'logits': found.logits.float().numpy(), 'unmasked_logits': unmasked.float().numpy(),
        'cross_attentions': torch.stack(attended.cross_attentions).float().numpy(),
        **{name: generated(each) for name, each in result.items()},
    }  # fmt: skip


def sentencepiece_model() -> bytes:
    """A SentencePiece model as mBART's: unknown, begin, end, then pieces."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile('w', suffix='.tsv') as rules:
        rules.write(RULES)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 5), model_writer=model, vocab_size=80, hard_vocab_limit=False,
            normalization_rule_tsv=rules.name, minloglevel=2,
        )  # fmt: skip
    return model.getvalue()


def save(model, tokenizer, directory: pathlib.Path) -> None:
    """As public directories are: weights, config.json, the SentencePiece file and settings of transformers 4."""
    model.save_pretrained(directory)
    path = directory / 'config.json'
    config = json.loads(path.read_text()) | {'tokenizer_class': 'MBart50Tokenizer'}
    path.write_text(json.dumps(config, indent=2) + '\n')
    tokens = {f'{name}_token': token for name, token in (
        ('bos', '<s>'), ('eos', '</s>'), ('sep', '</s>'), ('cls', '<s>'), ('unk', '<unk>'), ('pad', '<pad>'),
        ('mask', '<mask>'))}  # fmt: skip
    settings = tokens | {
        'src_lang': None, 'tgt_lang': None, 'additional_special_tokens': [*codes(tokenizer)],
        'tokenizer_class': 'MBart50Tokenizer',
    }  # fmt: skip
    (directory / 'tokenizer_config.json').write_text(json.dumps(settings, indent=1) + '\n')


def codes(tokenizer) -> dict[str, int]:
    """Ids of mBART-50's languages."""
    found = transformers.models.mbart50.tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES
    return {code: tokenizer.convert_tokens_to_ids(code) for code in found}


if __name__ == '__main__':
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / 'sentencepiece.bpe.model').write_bytes(sentencepiece_model())
    tokenizer = transformers.MBart50Tokenizer.from_pretrained(DIRECTORY)
    tokenizer.save_pretrained(HERE / 'saved')
    (HERE / 'saved' / 'tokenizer.json').rename(HERE / 'tokenizer.json')
    for file in (HERE / 'saved').iterdir():
        file.unlink()
    (HERE / 'saved').rmdir()
    model = random_model(6, vocab_size=len(tokenizer))
    save(model, tokenizer, DIRECTORY)
    languages = {code: codes(tokenizer)[code] for code in LANGUAGES}
    np.savez_compressed(HERE / 'outputs.npz', **outputs(model, languages))
    texts = {text: tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS + ODD}
    said = {
        'texts': texts, 'decoded': {text: tokenizer.decode(ids) for text, ids in texts.items()},
        'languages': codes(tokenizer), 'mask': tokenizer.mask_token_id,
    }  # fmt: skip
    (HERE / 'texts.json').write_text(json.dumps(said, ensure_ascii=False, indent=1) + '\n')
