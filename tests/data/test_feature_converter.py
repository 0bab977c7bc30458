"""Task features become the batch contract, in numpy and as SeqIO's converter alike."""

import numpy as np
import pytest
import seqio

from slm_jax.data import feature_converter
from slm_jax.data.tensorflow_cpu import tf

LENGTHS = {'speech': 6, 'inputs': 4, 'targets': 5}
EXAMPLE = {
    'speech': np.array([5, -6, 7], np.int16),
    'inputs': np.array([8, 9, 1], np.int32),
    'targets': np.array([3, 4, 1], np.int32),
}
EXPECTED = {
    'speech_samples': [5, -6, 7, 0, 0, 0],
    'speech_lengths': 3,
    'encoder_input_tokens': [8, 9, 1, 0],
    'decoder_input_tokens': [0, 3, 4, 1, 0],
    'decoder_target_tokens': [3, 4, 1, 0, 0],
    'decoder_loss_weights': [1, 1, 1, 0, 0],
}
DTYPES = {name: np.int32 for name in EXPECTED} | {
    'speech_samples': np.int16,
    'decoder_loss_weights': np.float32,
}


def dataset(example):
    return tf.data.Dataset.from_tensors({k: tf.constant(v) for k, v in example.items()}).map(
        lambda e: {k: tf.ensure_shape(tf.reshape(v, [-1]), [None]) for k, v in e.items()}
    )


def test_seqio_converter():
    converted = feature_converter.SpeechTextFeatureConverter()(dataset(EXAMPLE), LENGTHS)
    seqio.test_utils.assert_dataset(converted, EXPECTED, expected_dtypes={k: tf.as_dtype(v) for k, v in DTYPES.items()})
    assert converted.element_spec['speech_samples'].shape == [6]


def test_numpy_gives_the_same():
    features = feature_converter.model_features(EXAMPLE, LENGTHS)
    assert list(features) == list(feature_converter.SpeechTextFeatureConverter.MODEL_FEATURES)
    for name, value in features.items():
        assert value.dtype == DTYPES[name]
        np.testing.assert_array_equal(value, EXPECTED[name])


def test_a_row_of_padding_and_a_text_only_example():
    padding = feature_converter.model_features({}, LENGTHS)
    assert not any(np.any(value) for value in padding.values())
    text = feature_converter.model_features(
        {'inputs': EXAMPLE['inputs'], 'targets': EXAMPLE['targets']}, LENGTHS | {'speech': 0}
    )
    assert text['speech_samples'].shape == (0,) and text['speech_lengths'] == 0


def test_nothing_is_trimmed():
    with pytest.raises(ValueError, match='targets: 3 do not fit into 2'):
        feature_converter.model_features(EXAMPLE, LENGTHS | {'targets': 2})
    converter = feature_converter.SpeechTextFeatureConverter()
    with pytest.raises(tf.errors.InvalidArgumentError, match='speech'):
        list(converter(dataset(EXAMPLE), LENGTHS | {'speech': 2}))


def test_packing_is_refused():
    with pytest.raises(ValueError, match='not packed'):
        feature_converter.SpeechTextFeatureConverter(pack=True)
