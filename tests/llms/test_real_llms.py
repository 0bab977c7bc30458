"""Real models: the answers of public chat models are those that transformers gives from the same file.

Needs torch, transformers and gguf (pip install -e .[hf]) and the files: SLM_JAX_FOUNDATIONS is a directory with the
folders below, each with a GGUF file. The larger model takes 6 GB of memory.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from slm_jax import configuration, decoding, foundations, import_, llms
from slm_jax.data import prompts
from slm_jax.llms.decoder_only import DecoderOnly

pytestmark = pytest.mark.slow
MODELS = {'smollm2': 'SmolLM2-135M-Instruct', 'qwen_0.5b': 'Qwen2.5-Coder-0.5B-Instruct'}
QUESTIONS = (
    'What is the capital of France? Answer in one word.',
    'Translate into French: Good morning, my friend.',
    'Repeat word for word: please hold the line.',
    'Which is larger, an elephant or a mouse?',
    'Summarise in one sentence: The train to Rome was late because of snow, and we waited two hours in the cold.',
    'How many days are there in a week?',
    'Continue: once upon a time there was a small',
    'Write a function in Python that adds two numbers. Only code.',
    'Übersetze ins Englische: Wo ist der Bahnhof?',
    'Name three colours.',
    'What is 7 times 8?',
    'Is water wet? Answer yes or no.',
    'Who wrote Romeo and Juliet?',
    'List the size, the drink and the milk as JSON: a large latte with oat milk, please.',
    'Traduce al español: the book is on the table.',
    'What colour is the sky on a clear day?',
    'Say hello.',
    'Which language is this? "Ne quittez pas."',
    'Give the opposite of hot.',
    'Spell the word "cat" letter by letter.',
)
LIMIT = 192
BATCH = 5


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def gguf_file(name):
    root = os.environ.get('SLM_JAX_FOUNDATIONS')
    if root is None:
        pytest.skip('SLM_JAX_FOUNDATIONS names no directory with real models')
    found = [*pathlib.Path(root, name).glob('*.gguf')]
    if not found:
        pytest.skip(f'{root}/{name} has no GGUF file of {MODELS[name]}')
    return found[0]


def answers_of_transformers(file):
    """Texts, each row alone, and whether they ended."""
    for library in ('gguf', 'torch', 'transformers'):
        pytest.importorskip(library, reason=f'{library} makes the reference: pip install -e .[hf]')
    import gguf
    import torch
    import transformers

    source = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    # Both are in the file, and transformers 5 leaves them there.
    fields = gguf.GGUFReader(file).fields
    tokenizer.chat_template = fields['tokenizer.chat_template'].contents()
    end = fields['tokenizer.ggml.eos_token_id'].contents()
    found = []
    for question in QUESTIONS:
        turn = [{'role': 'user', 'content': question}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors='pt', add_special_tokens=False)
        with torch.no_grad():
            written = model.generate(
                **ids, max_new_tokens=LIMIT, do_sample=False, eos_token_id=end, pad_token_id=end,
            )[0, ids['input_ids'].shape[1] :]  # fmt: skip
        found.append((tokenizer.decode(written, skip_special_tokens=True), int(written[-1]) == end))
    return found


def answers(file, out):
    """The same of ours, in batches of prompts of different lengths."""
    import_.import_checkpoint(str(file), str(out), 'float32')
    configuration.parse_gin([str(out / 'model.gin')], [])
    llm = configuration.configured(DecoderOnly)()
    prompt = configuration.configured(prompts.Prompt)()
    params, vocabulary = foundations.load(out, jnp.float32), foundations.vocabulary(str(out))
    rows = [prompt.tokens(vocabulary, question, speech='') for question in QUESTIONS]
    size = max(map(len, rows))
    tokens = np.array([[*row, *[0] * (size - len(row))] for row in rows])
    mask = np.arange(size) < np.array([*map(len, rows)])[:, None]
    config = decoding.DecodeConfig(max_decode_length=LIMIT)

    @jax.jit
    def written(params, tokens, mask):
        embedded = llm.apply({'params': params}, tokens, method='embed')
        step, cache = llms.cached_step(llm, params, embedded, mask, LIMIT)
        return decoding.decode(step, cache, len(tokens), config, cache_batch_axis=llm.config.cache_batch_axis)[0]

    found = []
    for start in range(0, len(rows), BATCH):
        batch = slice(start, start + BATCH)
        found += [(vocabulary.decode(row), 1 in row) for row in np.array(written(params, tokens[batch], mask[batch]))]
    return found


@pytest.mark.parametrize('name', MODELS)
def test_the_same_answers_as_transformers(name, tmp_path):
    file = gguf_file(name)
    expected = answers_of_transformers(file)
    found = answers(file, tmp_path / name)
    for question, ours, theirs in zip(QUESTIONS, found, expected, strict=True):
        print(f'{question}\n  {ours[0]!r}, {"whole" if ours[1] else "cut"}')
        if ours != theirs:
            print(f'  but transformers: {theirs[0]!r}, {"whole" if theirs[1] else "cut"}')
    assert found == expected
    assert sum(ended for _, ended in found) >= 15
