"""The voice prompts as three manifests: their recordings where they lie, their text and its translations as spoken.

    python -m slm_jax.corpora.prompt_manifests OUT

writes OUT/{train,validation,test}.jsonl with id, audio, text, lang, duration and translation ({language: text});
what is not there yet is downloaded into OUT/downloads.
"""

import argparse
import os

import soundfile

from slm_jax import paths
from slm_jax.corpora import splits
from slm_jax.data import json_lines
from slm_jax.data.voice_prompts import builder, fetch


def write(out: str | os.PathLike, downloads: str | os.PathLike | None = None) -> dict[str, float]:
    """Writes the manifests; returns the hours of each split.

    Raises:
        FetchError: the prompts can be had nowhere.
    """
    out = paths.path(out)
    rows = {split: [] for split in splits.SPLITS}
    folders = fetch.fetch(downloads or out / 'downloads')
    texts = builder.spoken_texts(folders)
    split_of = builder.splits_of(texts)
    for lang, folder in folders.items():
        recordings = builder.recordings(folder)
        for prompt, text in texts[lang].items():
            path = recordings.get(prompt) or recordings.get(prompt.lower())
            if path and prompt in split_of:
                rows[split_of[prompt]].append(
                    {
                        'id': f'{lang}/{prompt}',
                        'audio': str(path.resolve()),
                        'text': text,
                        'lang': lang,
                        'duration': round(soundfile.info(path).duration, 3),
                        'translation': {to: texts[to][prompt] for to in texts if to != lang and prompt in texts[to]},
                    }
                )
    out.mkdir(parents=True, exist_ok=True)
    for split, part in rows.items():
        json_lines.write(out / f'{split}.jsonl', part)
    return {split: sum(row['duration'] for row in part) / 3600 for split, part in rows.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.prompt_manifests',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out')
    parser.add_argument('--downloads', help='folder of earlier downloads')
    args = parser.parse_args(argv)
    try:
        hours = write(args.out, args.downloads)
    except (OSError, fetch.FetchError) as error:
        parser.exit(2, f'{error}\n')
    for split, amount in hours.items():
        print(f'{split}: {amount:.2f} h')


if __name__ == '__main__':
    main()
