"""ComSL with `reference_quirks` against its authors' released code: value and gradient of every term."""

import functools
import importlib.util
import os
import pathlib

import jax
import numpy as np
import pytest
import tiny_comsl as tiny

from slm_jax.foundations import flatten

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 'comsl_goldens'
CHECKOUT = os.environ.get('COMSL_REFERENCE', '')
TERMS = ('asr', 'st', 'mt', 'asr_mix', 'st_mix', 'mtp', 'erm', 'loss')


def make():
    spec = importlib.util.spec_from_file_location('comsl_goldens', GOLDENS / 'make.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def ours(**fields):
    """{term: (value, {our path: gradient})}, and the parameters."""
    comsl, batch = tiny.system(reference_quirks=True, **fields), tiny.batch()
    params = tiny.params(comsl)

    def of(params, shares):
        """The terms together by their shares, and each of them."""
        terms = comsl.terms(params, batch, tiny.masked(8), None)
        values = {name: terms[name][0] for name in comsl.config.weights}
        values['loss'] = sum(weight * values[name] for name, weight in comsl.config.weights.items())
        return sum(shares[name] * value for name, value in values.items()), values

    gradient = jax.jit(jax.value_and_grad(of, has_aux=True))
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    found = {}
    for name in TERMS:
        (_, values), gradients = gradient(params, {each: np.float32(each == name) for each in TERMS})
        found[name] = float(values[name]), flatten(gradients)
    return found, leaves


def as_theirs(gradients):
    return make().weights({path: np.asarray(leaf) for path, leaf in gradients.items()})


@pytest.mark.parametrize('term', TERMS)
def test_terms_are_those_of_the_released_code(term):
    """Values, and of each parameter's gradient the norm and a random projection; all of it in the slow test."""
    (value, gradients), expected = ours()[0][term], np.load(GOLDENS / 'values.npz')
    np.testing.assert_allclose(value, expected[f'{term}/value'], rtol=1e-5)
    theirs = {name: leaf for name, leaf in as_theirs(gradients).items() if name != 'whisper.positional_embedding'}
    np.testing.assert_allclose(make().summed_up(theirs), expected[f'{term}/gradient'], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    not CHECKOUT or importlib.util.find_spec('torch') is None,
    reason="COMSL_REFERENCE names no checkout of the authors' code, or PyTorch is not installed",
)
@pytest.mark.parametrize('distilled', [False, True])
def test_every_gradient_is_that_of_the_released_code(distilled):
    comsl = tiny.system(reference_quirks=True)
    found, leaves = ours(mt_distil_alpha=0.2) if distilled else ours()
    teacher = {path: leaf for path, leaf in leaves.items() if path.startswith('teacher/')}
    batch = tiny.batch()
    mel = make().features(comsl, batch)
    expected = make().reference(CHECKOUT, leaves, mel, batch, tiny.masked(8), teacher)
    for term in TERMS:
        value, gradients = found[term]
        np.testing.assert_allclose(value, expected[term][0], rtol=1e-5, err_msg=term)
        theirs = as_theirs(gradients)
        for name, leaf in expected[term][1].items():
            np.testing.assert_allclose(theirs[name], leaf, rtol=1e-4, atol=1e-4, err_msg=f'{term}: {name}')
