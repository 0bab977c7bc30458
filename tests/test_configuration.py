"""Gin files and the command line: what means nothing stops at once, and says what was meant."""

import re

import pytest

import gin
from slm_jax import configuration
from slm_jax.inference import model

T5 = """
from __gin__ import dynamic_registration
from slm_jax.llms import t5
WIDTH = 8
t5.T5Config.emb_dim = %WIDTH
"""


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """parsed(text, *bindings) parses a gin file of that text."""
    monkeypatch.chdir(tmp_path)

    def parse(text, *bindings):
        (tmp_path / 'mine.gin').write_text(text)
        configuration.parse_gin(['mine.gin'], list(bindings))

    yield parse
    gin.clear_config()


def test_the_last_word_counts(parsed):
    parsed(T5 + 't5.T5Config.mlp_dim = 9\nWIDTH = 9\n', 'WIDTH=10', 't5.T5Config.mlp_dim=11')
    assert model.query('%WIDTH') == 10 and gin.query_parameter('t5.T5Config.mlp_dim') == 11


def test_text_needs_no_inner_quotes(parsed):
    parsed(T5, 't5.T5Config.dtype=bfloat16')
    assert gin.query_parameter('t5.T5Config.dtype') == 'bfloat16'


def test_what_no_file_mentions_can_be_bound_by_its_short_name(parsed):
    parsed(T5, 'T5Config.mlp_dim=12')
    assert gin.query_parameter('t5.T5Config.mlp_dim') == 12


def test_the_name_of_a_module_means_its_function_whatever_else_is_called_so(parsed, tmp_path, monkeypatch):
    (tmp_path / 'others.py').write_text('def train(steps=1): ...\n\n\nclass One:\n    def say(self, a=1): ...\n')
    with (tmp_path / 'others.py').open('a') as file:
        file.write('\n\ndef say(a=1): ...\n')
    monkeypatch.syspath_prepend(tmp_path)
    text = """
    from __gin__ import dynamic_registration
    from slm_jax import train
    import others
    others.train.steps = 2
    others.say.a = 2
    others.One.say.a = 3
    """
    parsed(text, 'train.num_samples=0')
    assert gin.query_parameter('slm_jax.train.train.num_samples') == 0
    with pytest.raises(configuration.ConfigurationError, match="'say' may be others.One.say, others.say; write which"):
        parsed(text, 'say.a=3')


@pytest.mark.parametrize(
    ('text', 'bindings', 'words'),
    [
        (T5 + 't5.T5Config.emb_dimm = 1', [], ['emb_dimm', "Did you mean 'emb_dim'?"]),
        (T5 + 't5.T5Confg.emb_dim = 1', [], ['T5Confg', "Did you mean 'T5Config'?"]),
        (T5.replace('WIDTH = 8', ''), [], ['macro %WIDTH is read but has no value', '--gin.WIDTH=VALUE']),
        (T5, ['WIDHT=9'], ["no gin file reads a macro 'WIDHT'", "Did you mean 'WIDTH'?"]),
        (T5, ['T5Confg.emb_dim=9'], ['nothing is called', "Did you mean 'T5Config'?"]),
        (T5, ['WIDTH=[1, 2'], ["'[1, 2' is not a gin value"]),
        ("from __gin__ import dynamic_registration\nfrom slm_jax.llms import t6\n", [], ['t6', "Did you mean 't5'?"]),
        ("include 'models/slm_tinny.gin'", [], ["Did you mean 'models/slm_tiny.gin'?"]),
    ],
)  # fmt: skip
def test_errors_name_what_was_meant(parsed, text, bindings, words):
    with pytest.raises(configuration.ConfigurationError) as caught:
        parsed(text, *bindings)
    for word in words:
        assert word in str(caught.value)


def test_nothing_is_left_of_an_earlier_configuration(parsed):
    parsed(T5, 'WIDTH=10')
    parsed(T5)
    assert gin.query_parameter('%WIDTH') == 8


def test_the_operative_configuration_can_be_parsed_again(parsed):
    parsed("include 'models/slm_tiny.gin'")
    system = model.configured_system()
    parsed(configuration.operative_config())
    assert model.configured_system() == system


# Of runs/t5x.gin, tests/training/test_t5x_bridge.py: it includes T5X's, which names T5X's train.py as __main__.
FILES = sorted({*configuration.search_path()[1].rglob('*.gin')} - {configuration.search_path()[1] / 'runs/t5x.gin'})


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_file_parses_alone(file):
    def required(name):
        text = configuration.find_gin_file(name).read_text()
        found = set(re.findall(r'^(\w+) = %gin.REQUIRED', text, re.M))
        given = set(re.findall(r'^(\w+) = (?!%gin.REQUIRED)', text, re.M))
        for included in re.findall(r"^include '(.*)'", text, re.M):
            found |= required(included)
        return found - given

    numbers = 'TRAIN_STEPS REDUCTION_FACTOR EMBED_DIM NUM_HEADS HEAD_DIM MLP_DIM EMBED_SCALE NUM_UNITS'.split()
    values = {macro: 1000 if macro in numbers else 'given' for macro in sorted(required(str(file)))}
    configuration.parse_gin([str(file)], [f'{macro}={value!r}' for macro, value in values.items()])
    rates = 'rates = ' in file.read_text()
    assert not rates or 'mixture.rates = ' in configuration.operative_config(), 'a card would not know them'
    gin.clear_config()


def test_a_module_may_be_imported_after_the_configuration_was_read():
    """As slm_jax.tasks is by whoever loads a model first and puts questions to it then."""
    import gin

    configuration.parse_gin([], [])

    def imported_later():
        return 1

    assert gin.configurable(imported_later, module='tests')() == 1
