"""LoRA in an SLM: trained beside the adapter, saved like it, left out at will; what is frozen says what it did."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_slm

import gin
from slm_jax import foundations
from slm_jax.adapters import lora
from slm_jax.inference import model as model_lib
from slm_jax.training import checkpoints

# Loss and gradient of LoRA on one device and on eight, of parameters and activations that are divided each way.
ON_DEVICES = """
import pathlib, sys
import flax.linen as nn, jax, numpy as np, tiny_slm
from slm_jax.training import partitioning
system = tiny_slm.configured(pathlib.Path(sys.argv[1]))
batch = tiny_slm.batch(rows=8)
boxed = jax.eval_shape(system.init, jax.random.key(0), batch)
params = nn.unbox(jax.jit(system.init)(jax.random.key(0), batch))
params['lora'] = jax.tree.map(lambda leaf: leaf + 0.1, params['lora'])
found = []
for size in (1, 2):
    partitioner = partitioning.Partitioner(data=size, fsdp=size, model=size)
    mesh = partitioner.mesh(jax.devices()[: size**3])
    placed = jax.device_put(params, partitioner.shardings(boxed, mesh))
    with partitioner.tracing(mesh):
        step = jax.jit(jax.value_and_grad(lambda lora, rest, batch: system.loss(rest | {'lora': lora}, batch, None)[0]))
        found.append(step(placed['lora'], placed, partitioning.shard_batch(batch, mesh)))
(loss, one), (other, many) = jax.device_get(found)
np.testing.assert_allclose(loss, other, rtol=1e-5)
for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)  # sums of another order, through random weights
print(len(jax.tree.leaves(one)))
"""
PROMPT, TARGET = (np.random.default_rng(i).integers(3, 259, (4, 9)) for i in range(2))
OFF = ('LoraConfig.alpha=0',)


@pytest.fixture(scope='module', params=['llama', pytest.param('t5', marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    """Foundations, an adapter trained alone (`plain`), and one beside LoRA (`run`)."""
    folder = tmp_path_factory.mktemp(request.param.replace(' ', '_'))
    system = tiny_slm.write(folder, request.param, ['SLM.lora=None', "TRAINABLE=('adapter/.*',)"])
    assert system.lora is None
    tiny_slm.train(folder, 3, 'plain')
    tiny_slm.configured(folder)
    assert tiny_slm.train(folder, 3)['step'] == 3
    yield folder
    gin.clear_config()


def text_logits(model):
    """Of every token, as the language model of a loaded model gives them to text."""
    config = getattr(model.system, 'lora', None)

    def function(params):
        with lora.applied(config, params) as parts:
            return model.system.llm.apply({'params': parts['llm']}, PROMPT, TARGET, TARGET)

    return np.asarray(jax.jit(function)(model.params))


def test_the_frozen_language_model_says_what_it_said(folder):
    alone = text_logits(model_lib.load(folder / 'llm'))
    for run, bindings in (('plain', ()), ('run', OFF)):
        model = model_lib.load(folder / run, bindings=bindings)
        np.testing.assert_array_equal(text_logits(model).view(np.int32), alone.view(np.int32))
    model = model_lib.load(folder / 'run')
    frozen, stored = foundations.flatten(model.params['llm']), foundations.flatten(foundations.load(folder / 'llm'))
    for path, leaf in stored.items():
        np.testing.assert_array_equal(frozen[path], leaf, err_msg=path)
    assert np.abs(text_logits(model) - alone).max() > 0.1


def test_answers_to_texts_and_to_speech(folder):
    batch = tiny_slm.batch()
    text = {**batch, 'speech_samples': batch['speech_samples'][:, :0], 'speech_lengths': 0 * batch['speech_lengths']}
    limit = {'decode': {'max_decode_length': 6, 'method': 'greedy', 'max_length_ratio': None}}
    alone = model_lib.load(folder / 'llm', **limit).answers(text)
    off, on = (model_lib.load(folder / 'run', bindings=bindings, **limit) for bindings in (OFF, ()))
    assert off.answers(text) == alone != on.answers(text)
    assert on.answers(batch) != off.answers(batch)


def test_what_a_checkpoint_has_and_what_goes_on_from_it(folder, capsys):
    params, card = checkpoints.load_for_inference(folder / 'run')
    assert sorted(params) == ['adapter', 'lora'] and list(params['lora']) == ['llm']
    ups = {path: leaf for path, leaf in foundations.flatten(params['lora']).items() if path.endswith(lora.UP)}
    assert ups and all(np.any(leaf != 0) for leaf in ups.values())
    counted = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert card['num_params']['trained'] == counted and card['foundations'].keys() == {'speech_encoder', 'llm'}
    run = f'{folder}/run'
    first, last = min(foundations.flatten(params['lora'])), (folder / 'run/checkpoints/3').name
    for bindings, match in (
        (['LORA_RANK=1'], rf'run/checkpoints/{last}: \d+ trained parameters are not those .*lora/.*: \(.*2\) there, '),
        (["LORA_MODULES=('llm/.*/query',)"], r'trained parameters are not those .*first lora/.*, none here'),
    ):
        tiny_slm.configured(folder, bindings)
        with pytest.raises(ValueError, match=match):
            tiny_slm.train(folder, 4)
        with pytest.raises(model_lib.ModelError, match=r'lora/llm/.* has shape .* there and .* in this configuration'):
            model_lib.load(run, bindings=bindings)
        origins = f"FOUNDATIONS={{'speech_encoder': '{folder}/encoder', 'llm': '{folder}/llm', 'lora': '{run}'}}"
        tiny_slm.configured(folder, [*bindings, origins])
        with pytest.raises(foundations.FoundationError, match='lora = .*(has shape|have no place in the system)'):
            tiny_slm.train(folder, 4, 'other')
    tiny_slm.configured(folder, ["LORA_MODULES=('llm/.*',)"])
    with pytest.raises(foundations.FoundationError, match=r'frozen parameters come from nowhere \(lora/llm'):
        model_lib.load(run, bindings=["LORA_MODULES=('llm/.*',)"])
    tiny_slm.configured(folder, [origins])
    capsys.readouterr()
    tiny_slm.train(folder, 1, 'on', trainable=('adapter/.*',))
    again, card = checkpoints.load_for_inference(folder / 'on')
    assert list(again) == ['adapter'] and card['foundations']['lora']['name'] == run
    held = model_lib.load(folder / 'on').params['lora']
    assert np.array_equal(foundations.flatten(held)[first], foundations.flatten(params['lora'])[first])
    tiny_slm.configured(folder)
    tiny_slm.train(folder, 4)
    assert 'resumed' in capsys.readouterr().out


def test_frames_are_not_stored_of_an_encoder_that_it_updates(folder):
    tiny_slm.configured(folder, ["LORA_MODULES=('speech_encoder/encoder/.*/q_proj',)"])
    with pytest.raises(ValueError, match='ENCODED: LoRA updates the speech encoder .*LoraConfig.modules'):
        tiny_slm.train(folder, 1, 'frames', encoded=True)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(folder):
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    tests = pathlib.Path(tiny_slm.__file__).parent
    done = subprocess.run(
        [sys.executable, '-c', ON_DEVICES, folder],
        env={**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': f'{tests}:{os.environ.get("PYTHONPATH", "")}'},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and int(done.stdout) >= 10, done.stderr[-2000:]


def test_the_teacher_of_a_distillation_is_without_it(folder):
    system = tiny_slm.configured(folder, ["slm.SLM.objective='distil'"])
    params, _ = checkpoints.load_for_inference(folder / 'run')
    params |= {name: foundations.load(folder / part) for name, part in (('llm', 'llm'), ('speech_encoder', 'encoder'))}
    batch = tiny_slm.batch()
    # Read as text, what is taught and what is said are the same, but for LoRA.
    batch |= {'teacher_input_tokens': batch['encoder_input_tokens'], 'speech_samples': np.zeros((3, 0), np.int16)}
    loss = jax.jit(lambda params: system.loss(params, batch, None)[0])(params)
    none = jax.tree.map(lambda leaf: 0 * leaf, params['lora'])
    assert (
        loss > 0.01 and abs(jax.jit(lambda params: system.loss(params, batch, None)[0])(params | {'lora': none})) < 1e-5
    )
