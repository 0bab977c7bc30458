"""What gin binds is checked against what functions take, and errors name the macro that gave a value."""

import inspect

import pytest

import gin
from slm_jax import bindings, configuration, train

GIVEN = ['MODEL_DIR=nowhere', 'MIXTURE_OR_TASK_NAME=no_such_task', 'TRAIN_STEPS=300']


def parse(*more):
    configuration.parse_gin(['runs/train.gin', 'models/slm_tiny.gin'], [*GIVEN, *more])


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()
    assert not list(tmp_path.iterdir()), 'something was written before the values were checked'


@pytest.mark.parametrize(
    ('binding', 'words'),
    [
        ('TRAIN_STEPS=2.5', '(set by TRAIN_STEPS) is 2.5; it must be a whole number'),
        ('TRAIN_STEPS=abc', "(set by TRAIN_STEPS) is 'abc'; it must be a whole number"),
        ('EVAL_BATCHES=True', 'train.eval_batches (set by EVAL_BATCHES) is True; it must be a whole number or None'),
        ('LEARNING_RATE=fast', "(set by LEARNING_RATE) is 'fast'; it must be a number"),
        ('BATCH_SECONDS=long', "(set by BATCH_SECONDS) is 'long'; it must be a number"),
        ("TASK_FEATURE_LENGTHS={'speech': 1.5}", "(set by TASK_FEATURE_LENGTHS) is {'speech': 1.5}"),
        ('TRAINABLE=3', '(set by TRAINABLE) is 3; it must be a list (text)'),
        (
            'FOUNDATIONS=usm_tiny',
            "(set by FOUNDATIONS) is 'usm_tiny'; it must be a dictionary {text: text or None} or None",
        ),
        ('RANDOM_SEED=one', "(set by RANDOM_SEED) is 'one'"),
        ('train.max_to_keep=2.5', 'train.max_to_keep is 2.5; it must be a whole number.'),
        ('train.tensorboard=1', 'train.tensorboard is 1; it must be True or False.'),
        ('Partitioner.fsdp=two', "Partitioner.fsdp is 'two'; it must be a whole number."),
        ('Partitioner.fsdp=0', 'Partitioner.fsdp is 0; it must be at least 1'),
        ('DecodeConfig.top_p=2', 'DecodeConfig.top_p is 2; it must be in (0, 1].'),
        ('ENCODER_DROPOUT_RATE=1.0', 'UsmConfig.dropout_rate (set by ENCODER_DROPOUT_RATE) is 1.0; it must be in'),
        ('T5Config.dropout_rate=-0.1', 'T5Config.dropout_rate is -0.1; it must be in [0, 1).'),
        ('SlmAdapterConfig.dropout_rate=2', 'SlmAdapterConfig.dropout_rate is 2; it must be in [0, 1).'),
        ('SLM.llm=3', 'SLM.llm is 3; it must be LanguageModel.'),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_by_its_names(binding, words):
    with pytest.raises(configuration.ConfigurationError) as caught:
        parse(binding)
    assert words in str(caught.value)


def test_macros_without_a_value_are_listed():
    with pytest.raises(configuration.ConfigurationError, match='MODEL_DIR, TRAIN_STEPS have no value: give --gin.MODE'):
        configuration.parse_gin(['runs/train.gin', 'models/slm_tiny.gin'], ['MIXTURE_OR_TASK_NAME=x'])


@pytest.mark.parametrize(
    ('binding', 'parameter'),
    [
        ('train.max_to_keep=3', 'train.train.max_to_keep'),
        ('train.num_samples=3', 'train.train.num_samples'),
        ('Partitioner.fsdp=3', 'partitioning.Partitioner.fsdp'),
        ('SpeechTextLoader.row_multiple=3', 'loader.SpeechTextLoader.row_multiple'),
        ('eval/SpeechTextLoader.row_multiple=3', 'eval/loader.SpeechTextLoader.row_multiple'),
    ],
)
def test_short_names_of_what_bears_the_name_of_its_module(binding, parameter):
    parse(binding)
    assert gin.query_parameter(parameter) == 3


@pytest.mark.parametrize(
    ('binding', 'words'),
    [
        ('train.max_to_keep=0', 'train.max_to_keep is 0; it must be at least 1.'),
        ('TRAIN_STEPS=0', 'needs total_steps (set by TRAIN_STEPS) above schedule.warmup_steps (set by WARMUP_STEPS)'),
        ('WARMUP_STEPS=300', 'schedule.warmup_steps (set by WARMUP_STEPS), which is 300; it is 300.'),
        ('WARMUP_STEPS=-1', 'schedule.warmup_steps (set by WARMUP_STEPS) is -1; it must be at least 0.'),
        ('LEARNING_RATE=-1', 'schedule.peak (set by LEARNING_RATE) is -1; it must be above 0.'),
        ('EVAL_BATCHES=0', 'train.eval_batches (set by EVAL_BATCHES) is 0; it must be at least 1.'),
        ('EVAL_PERIOD=0', 'train.eval_period (set by EVAL_PERIOD) is 0; it must be at least 1.'),
        ('train.log_period=0', 'train.log_period is 0; it must be at least 1.'),
        ('train.checkpoint_period=-5', 'train.checkpoint_period is -5; it must be at least 1.'),
        ('train.num_samples=-1', 'train.num_samples is -1; it must be at least 0.'),
        ('RANDOM_SEED=-1', 'train.seed (set by RANDOM_SEED) is -1; it must be at least 0.'),
        ('schedule.decay=cosin', "schedule.decay is 'cosin'; it must be one of ('constant', 'rsqrt', 'cos"),
        ('adamw.clip_norm=0', 'adamw.clip_norm is 0; it must be above 0, or None.'),
        ('Partitioner.fsdp=64', 'fsdp=64, model=1 do not multiply to'),
        ('FROZEN_DTYPE=int9', "train.frozen_dtype (set by FROZEN_DTYPE) is 'int9'; frozen parameters are held in"),
        ("TRAINABLE=('adaptor/.*',)", "train.trainable (set by TRAINABLE): the pattern 'adaptor/.*' matches no"),
        ("TRAINABLE=('adapter/(',)", "train.trainable (set by TRAINABLE): 'adapter/(' is no regular expression"),
        ("adamw.rate_factors={'lm/.*': 2.0}", "adamw.rate_factors: the pattern 'lm/.*' matches no parameter"),
        ("FOUNDATIONS={'lm': 't5_tiny'}", "(set by FOUNDATIONS)"),
        ('train.best_metric=dev/loss', "train.best_metric is 'dev/loss'; evaluation gives validation/accuracy, valid"),
    ],
)  # fmt: skip
def test_training_refuses_before_it_looks_for_data(binding, words, capsys):
    arguments = ['--gin_file=runs/train.gin', '--gin_file=models/slm_tiny.gin']
    assert train.main([*arguments, *(f'--gin.{given}' for given in [*GIVEN, binding])]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert 'In call to configurable' not in error


def test_a_configuration_without_a_training_says_what_it_lacks(capsys):
    assert train.main(['--gin_file=models/slm_tiny.gin']) == 2
    assert 'train.system, train.loader, train.optimizer, train.model_dir, train.train_steps' in capsys.readouterr().err


def test_all_of_training_has_types():
    """Else `misfits` would let everything through."""
    parameters = inspect.signature(train.train).parameters
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters.values())


def test_an_error_is_left_alone_where_no_macro_is_to_blame():
    parse()
    assert bindings.explained('clip.wav: no audio') == 'clip.wav: no audio'
    assert bindings.explained('train.seed is 3') == 'train.seed (set by RANDOM_SEED) is 3'
