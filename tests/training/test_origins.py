"""What a system takes of a foundation is all of it, or it is another model and is refused."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import pytest

from slm_jax import foundations
from slm_jax.foundations import FoundationError, unflatten
from slm_jax.importers import t5 as importers_t5
from slm_jax.llms import t5
from slm_jax.training import checkpoints, origins

CFG = t5.T5Config(
    vocab_size=16, emb_dim=4, num_heads=1, num_encoder_layers=3, num_decoder_layers=2, head_dim=4, mlp_dim=4
)  # fmt: skip
CTC = {'speech_encoder/ctc/Dense_0/kernel': jax.ShapeDtypeStruct((4, 3), jnp.float32)}
ENCODER = {'speech_encoder/encoder/kernel': jax.ShapeDtypeStruct((4, 4), jnp.float32)}


@functools.cache
def llm(**changes):
    return {f'llm/{path}': leaf for path, leaf in importers_t5.shapes(dataclasses.replace(CFG, **changes)).items()}


def origin(subtree, stored):
    paths = {path: path.removeprefix(f'{subtree}/') for path in stored}
    return origins.Origin(subtree, f'my_{subtree}', None, paths, stored, {})


def check(found, frozen, trainable=None):
    return origins.check(found, unflatten(trainable or {}), unflatten(frozen))


@pytest.mark.parametrize(
    ('changes', 'left'),
    [
        (dict(num_encoder_layers=1), r'18 of its .* \(llm/encoder/layers_1 \(9\), llm/encoder/layers_2 \(9\)\)'),
        (dict(num_decoder_layers=1), r'14 of its .* \(llm/decoder/layers_1 \(14\)\)'),
        (dict(logits_via_embedding=True), r'1 of its .* \(llm/decoder/logits_dense \(1\)\)'),
    ],
)
def test_fewer_layers_or_parts(changes, left):
    assert not check([origin('llm', llm())], llm())
    for frozen, trainable in ((llm(**changes), {}), ({}, llm(**changes))):
        with pytest.raises(FoundationError, match=f"llm = 'my_llm': .*{left}: .*fewer layers.*Use the model file"):
            check([origin('llm', llm())], frozen, trainable)


def test_scanned_layers():
    with pytest.raises(FoundationError, match='has shape .* and .* in the system'):
        check([origin('llm', llm(scan_layers=True))], llm(scan_layers=True, num_encoder_layers=2))


def test_the_encoders_own_recogniser_may_stay_behind():
    assert not check([origin('speech_encoder', ENCODER | CTC)], ENCODER)
    assert not check([origin('speech_encoder', ENCODER | CTC)], ENCODER | CTC)


def test_a_foundation_for_no_part_of_the_system():
    """Else a misspelt part is freshly initialised where it trains."""
    text = r"foundations\['lm'\]: 'my_lm' is given for a part that the system does not have. It has \['llm'\]"
    with pytest.raises(FoundationError, match=text):
        check([origin('lm', {'lm/kernel': jax.ShapeDtypeStruct((4,), jnp.float32)})], {}, llm())


def test_the_packaged_parts_are_used_whole():
    found = origins.find({'llm': 't5_tiny', 'speech_encoder': 'usm_tiny'})
    assert [origin.fingerprint for origin in found] == [
        foundations.card(name)['fingerprint'] for name in ('t5_tiny', 'usm_tiny')
    ]
    assert {path.split('/')[1] for path in found[1].stored} == {'encoder', 'ctc'}


def test_of_a_part_that_trained_in_parts_the_rest_comes_from_where_it_did(tmp_path):
    def leaf(number):
        return jnp.full((2,), number, jnp.float32)

    def save(encoder):
        foundations.save(tmp_path / 'whole', encoder, {'name': 'whole', 'kind': 'speech_encoder'})

    save({'encoder': {'kernel': leaf(1), 'positions': leaf(2)}, 'ctc': {'kernel': leaf(3)}})
    entry = origins.find({'speech_encoder': tmp_path / 'whole'})[0].describe()
    trained, card = {'speech_encoder': {'encoder': {'kernel': leaf(4)}}}, {'foundations': {'speech_encoder': entry}}
    model = tmp_path / 'model'
    checkpoints.write_for_inference(model, trained, card | {'kind': checkpoints.KIND, 'step': 1}, 'float32')
    found = origins.find({'speech_encoder': model})
    wanted = {path: jax.ShapeDtypeStruct((2,), jnp.float32) for each in found for path in each.stored}
    assert wanted.keys() == {f'speech_encoder/{name}' for name in ('encoder/kernel', 'encoder/positions', 'ctc/kernel')}
    assert not check(found, {path: leaf for path, leaf in wanted.items() if 'ctc' not in path})
    read = origins.load(found, unflatten(wanted))['speech_encoder']
    assert [float(read['encoder'][name][0]) for name in ('kernel', 'positions')] == [4, 2]
    assert [entry['name'] for entry in origins.described(found).values()] == [str(model)]
    shutil.rmtree(tmp_path / 'whole')
    save({'encoder': {'kernel': leaf(1), 'positions': leaf(5)}, 'ctc': {'kernel': leaf(3)}})
    with pytest.raises(FoundationError, match=r"model trained 'speech_encoder' on .*whole' of the content .*Put back"):
        origins.find({'speech_encoder': model})
