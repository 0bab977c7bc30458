"""What one may ask of speech, for a first try: `python -m slm_jax.corpora.spoken_examples OUT`.

Writes OUT/{order,week,season}.wav, read by SVOX Pico (py-nanotts, Apache-2.0), a small synthesiser, and
OUT/examples.jsonl, a manifest of them with an instruction each, for `slm-jax infer --manifest`.
"""

import argparse
import pathlib

_TEXTS = {
    'order': 'Can I get a medium dark roast coffee with cream, please?',
    'week': 'How many days are there in a week?',
    'season': 'Which season comes after winter?',
}
_ASKED = (
    ('order', 'Transcribe the speech.'),
    ('order', 'What size of drink is ordered? Answer with one word.'),
    ('week', 'Answer the question.'),
    ('season', 'Answer the question.'),
)


def write(out: pathlib.Path) -> None:
    """Writes the files of the module's docstring.

    Raises:
        ImportError: py-nanotts is not installed.
    """
    import soundfile

    from slm_jax.corpora import voices
    from slm_jax.data import json_lines

    out.mkdir(parents=True, exist_ok=True)
    engines = voices.Engines()
    for name, text in _TEXTS.items():
        samples, rate = engines.read('pico', 'en-US', text, 'en', 1.0)
        soundfile.write(out / f'{name}.wav', samples, rate)
    rows = [{'audio': f'{name}.wav', 'text': _TEXTS[name], 'instruction': asked} for name, asked in _ASKED]
    json_lines.write(out / 'examples.jsonl', rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.spoken_examples',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', type=pathlib.Path)
    try:
        write(parser.parse_args(argv).out)
    except ImportError as error:
        parser.exit(2, f"{error}: pip install 'slm_jax[quickstart]'\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main()
