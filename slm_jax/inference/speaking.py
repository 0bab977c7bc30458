"""Says a text: a DMLM writes units of speech, and a vocoder makes samples of them (`slm-jax infer --speak`)."""

import argparse
import io
import sys
from typing import Any

import numpy as np
from jaxtyping import Int16

from slm_jax import model_arguments, paths
from slm_jax.inference import queries

_TOKENS = 32  # a prompt is filled up to a multiple


def speak(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status, 0.

    Raises:
        ValueError: wrong arguments, a model that writes no speech, or a vocoder of other units.
    """
    if args.speak is None or not args.vocoder or len(args.files) != 1 or not args.files[0].lower().endswith('.wav'):
        raise ValueError(
            '--speak takes a text, one file to write, and what says the units: '
            'slm-jax infer --speak "Please hold the line." out.wav --model DIR --vocoder DIR.'
        )
    import soundfile

    from slm_jax.codebooks.vocoder import Vocoder

    vocoder = Vocoder.load(args.vocoder)
    model = model_arguments.load(args.model, args)
    check(model, vocoder)
    samples, cut = said(model, vocoder, args.speak, args.instruction)
    if cut:
        print(
            'slm-jax infer: what is said is cut, it reached max_decode_length '
            f'{model.system.sampling.max_decode_length}; '
            '--gin.sampling/DecodeConfig.max_decode_length=… lets it go on.',
            file=sys.stderr,
        )
    content = io.BytesIO()
    soundfile.write(content, samples, queries.SAMPLE_RATE, format='WAV', subtype='PCM_16')
    paths.write(paths.path(args.files[0]), content.getvalue())
    print(f'{args.files[0]}: {len(samples) / queries.SAMPLE_RATE:.2f} s')
    return 0


def check(model: Any, vocoder: Any) -> None:
    """Refuses a model that writes no speech, or whose units the vocoder does not say, with a ValueError."""
    known = getattr(model.system, 'modalities', None)
    if known is None or not known.speech:
        raise ValueError(
            f'--speak: {model.directory.name} writes no units of speech. Give --model a DMLM that has them '
            '(gin/models/dmlm.gin, SPEECH_UNITS).'
        )
    if known.codebook:
        from slm_jax.codebooks import labels

        try:
            label = labels.of(model.foundations.get('codebook', {}).get('name', known.codebook))
        except ValueError as error:
            raise ValueError(f'--speak: the codebook of {model.directory.name}, SPEECH_CODEBOOK: {error}') from error
        vocoder.check(label)
    if (units := vocoder.model.config.num_units) != known.speech:
        raise ValueError(
            f'--vocoder: it says {units} units ({vocoder.codebook}), and {model.directory.name} has {known.speech}. '
            'Give a vocoder that was trained on units of the same codebook.'
        )


def said(model: Any, vocoder: Any, text: str, instruction: str = '') -> tuple[Int16[np.ndarray, ' n'], bool]:
    """Samples at 16 kHz of a text that is said, and whether a limit cut it.

    Raises:
        ValueError: there is no text, the language has no control token, or the model writes nothing.
    """
    prompt = model.prompt.spoken(model.text_vocabulary, text, instruction)
    query, tokens = queries.Query(prompt), -(-len(prompt) // _TOKENS) * _TOKENS
    row = model.tokens(queries.batch_of([query], (0.0, tokens), model.row_multiple))[0]
    start, stop = model.system.modalities.ranges['speech']
    units = row[(row >= start) & (row < stop)] - start
    if not len(units):
        raise ValueError(f'--speak: {model.directory.name} writes nothing to {text!r}. Train it on text to speech.')
    return vocoder.speak(units), bool(model.cut(row))
