"""SeqIO feature converter: task features to the batch contract that every system reads."""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import seqio

_Spec = seqio.FeatureConverter.FeatureSpec


def model_features(
    example: Mapping[str, np.ndarray], lengths: Mapping[str, int], bos_id: int = 0
) -> dict[str, np.ndarray]:
    """Pads one example to the lengths of `speech`, `inputs` and `targets`.

    Args:
        example: int16 speech, int32 inputs and targets; one that is absent is empty.
        lengths: may have those of `teacher_inputs` and `token_ends`, too.

    Returns:
        The features listed in `SpeechTextFeatureConverter`; with `teacher_inputs` also `teacher_input_tokens`, with
        `token_ends` these.

    Raises:
        ValueError: a feature is longer than its length.
    """
    padded = {}
    for name in lengths:
        value, dtype = example.get(name, ()), {'speech': np.int16, 'token_ends': np.float32}.get(name, np.int32)
        if len(value) > lengths[name]:
            raise ValueError(f'{name}: {len(value)} do not fit into {lengths[name]}')
        padded[name] = np.zeros(lengths[name], dtype)
        padded[name][: len(value)] = value
    targets = padded['targets']
    taught = {'teacher_input_tokens': padded['teacher_inputs']} if 'teacher_inputs' in lengths else {}
    timed = {'token_ends': padded['token_ends']} if 'token_ends' in lengths else {}
    return {
        **taught,
        **timed,
        'speech_samples': padded['speech'],
        'speech_lengths': np.int32(len(example.get('speech', ()))),
        'encoder_input_tokens': padded['inputs'],
        'decoder_input_tokens': np.concatenate([[bos_id], targets[:-1]])[: len(targets)].astype(np.int32),
        'decoder_target_tokens': targets,
        'decoder_loss_weights': (targets != 0).astype(np.float32),
    }


def with_frames(
    features: Mapping[str, np.ndarray], frames: np.ndarray | None, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Model features of an example that bring stored frames in the place of its samples.

        speech_samples        int16 [0]
        speech_frames         bfloat16 [frames, width]   what the speech encoder made of them
        speech_frame_lengths  int32 []                   valid frames

    Args:
        features: see `model_features`.
        frames: bfloat16 [n, width]; None of a text.
        shape: [frames, width] that they are padded to.
    """
    padded, length = np.zeros(shape, ml_dtypes.bfloat16), 0
    if frames is not None:
        length = len(frames)
        padded[:length] = frames
    return {
        **features,
        'speech_samples': np.zeros(0, np.int16),
        'speech_frames': padded,
        'speech_frame_lengths': np.asarray(length, np.int32),
    }


class SpeechTextFeatureConverter(seqio.FeatureConverter):
    """speech, inputs, targets → zero-padded model features, for our loader and for T5X alike.

        speech_samples         int16 [speech]     16 kHz mono
        speech_lengths         int32 []           valid samples; 0 = a text-only example
        encoder_input_tokens   int32 [inputs]     the prompt; `prompts.SPEECH` where the speech stands, if not in front
        decoder_input_tokens   int32 [targets]    targets shifted right by one, 0 first
        decoder_target_tokens  int32 [targets]
        decoder_loss_weights   float32 [targets]  1 where there is a target

    The lengths in square brackets are those of `task_feature_lengths`. Nothing is packed, and
    nothing is trimmed: a feature that is longer is an error.
    """

    TASK_FEATURES = {
        'speech': _Spec(dtype=tf.int16),
        'inputs': _Spec(dtype=tf.int32),
        'targets': _Spec(dtype=tf.int32),
    }
    MODEL_FEATURES = {
        'speech_samples': _Spec(dtype=tf.int16),
        'speech_lengths': _Spec(dtype=tf.int32, rank=0),
        'encoder_input_tokens': _Spec(dtype=tf.int32),
        'decoder_input_tokens': _Spec(dtype=tf.int32),
        'decoder_target_tokens': _Spec(dtype=tf.int32),
        'decoder_loss_weights': _Spec(dtype=tf.float32),
    }
    PACKING_FEATURE_DTYPES = None

    def __init__(self, pack: bool = False, **kwargs):
        if pack:
            raise ValueError('speech is not packed: length buckets keep the padding small')
        super().__init__(pack=False, **kwargs)

    def _convert_features(self, ds, task_feature_lengths: Mapping[str, int]):
        def convert(*values):
            features = model_features(dict(zip(self.TASK_FEATURES, values)), task_feature_lengths, self.bos_id)
            return [features[name] for name in self.MODEL_FEATURES]

        def convert_example(example):
            values = tf.numpy_function(
                convert,
                [example[name] for name in self.TASK_FEATURES],
                [spec.dtype for spec in self.MODEL_FEATURES.values()],
                stateful=False,
            )
            lengths = self.get_model_feature_lengths(task_feature_lengths)
            return {
                name: tf.ensure_shape(value, [lengths[name]] if spec.rank else [])
                for value, (name, spec) in zip(values, self.MODEL_FEATURES.items())
            }

        return ds.map(convert_example, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]):
        targets = task_feature_lengths['targets']
        return {
            'speech_samples': task_feature_lengths['speech'],
            'speech_lengths': 1,  # a scalar; SeqIO wants every model feature named here
            'encoder_input_tokens': task_feature_lengths['inputs'],
            'decoder_input_tokens': targets,
            'decoder_target_tokens': targets,
            'decoder_loss_weights': targets,
        }
