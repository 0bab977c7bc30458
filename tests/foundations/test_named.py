"""The table of public foundations."""

import re

import pytest

from slm_jax.foundations import named


@pytest.mark.parametrize('name', named.FOUNDATIONS)
def test_it_is_complete(name):
    each = named.FOUNDATIONS[name]
    assert set(each.content) == {'bfloat16', 'float32'} and each.num_params > 10**6
    digests = [*each.content.values(), *(file.sha256 for file in each.files)]
    assert all(re.fullmatch('[0-9a-f]{64}', digest) for digest in digests) and len(set(digests)) == len(digests)
    assert all(re.fullmatch(r'[a-z0-9-]+==[\d.]+', package) for package in each.packages)
    assert re.fullmatch(r'hf:\w+/[\w.-]+', each.hub)
    assert len(each.files) == 1 or 'config.json' in [file.name for file in each.files]


def test_names_are_found_by_what_is_near():
    assert named.nearest('Whisper-Base') == 'whisper_base' and named.nearest('whisper_tiny.en') == 'whisper_tiny_en'
    assert named.nearest('runs/smollm2-135m') == 'smollm2_135m' and named.nearest('gemma') is None
