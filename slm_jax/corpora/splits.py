"""Splits a JSONL manifest by a field, so that no speaker is on both sides.

    python -m slm_jax.corpora.splits MANIFEST OUT --field speaker

writes OUT/{train,validation,test}.jsonl. With h = md5(value of the field) mod `parts`, h = 0 is
test, h = 1 validation, the rest training: a rule that needs no file to be remembered, and that
leaves every old clip where it was when the manifest grows. Where a corpus has so few speakers
that the hash leaves one side empty, name the values: `--test alice --validation bob`.
"""

import argparse
import hashlib
import os

from slm_jax import paths
from slm_jax.data import json_lines, manifests

SPLITS = ('train', 'validation', 'test')


def split_of(value: object, parts: int = 5) -> str:
    """The split that a value (a speaker, a prompt id) belongs to."""
    bucket = int(hashlib.md5(str(value).encode()).hexdigest(), 16) % parts
    return {0: 'test', 1: 'validation'}.get(bucket, 'train')


def split_manifest(
    manifest: str | os.PathLike,
    out: str | os.PathLike,
    field: str,
    parts: int = 5,
    test: tuple[str, ...] = (),
    validation: tuple[str, ...] = (),
) -> dict[str, tuple[int, float]]:
    """Writes the three manifests; returns {split: (clips, hours)}.

    Args:
        manifest: JSONL; the recordings' paths are relative to it. The written manifests hold absolute ones.
        out: directory, made if it is absent.
        field: the field to split on. Lines that lack it stop the program: they could be anybody.
        parts: one part in `parts` is test and one validation.
        test, validation: values to take instead of hashing; with either given, nothing is hashed.

    Raises:
        ValueError: a line is not JSON or lacks the field, or a named value does not occur.
    """
    manifest, out = paths.path(manifest), paths.path(out)
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    hours = dict.fromkeys(SPLITS, 0.0)
    named = {**dict.fromkeys(validation, 'validation'), **dict.fromkeys(test, 'test')}
    met = set()
    for number, line in json_lines.lines(manifest):
        try:
            row = json_lines.parse(line)
            if row.get(field) is None:
                raise ValueError(f'no field {field!r}; split by another field or add it')
            seconds = manifests.seconds(row, 'duration') or 0.0
        except ValueError as error:
            raise ValueError(f'{manifest}:{number}: {error}') from None
        value = str(row[field])
        met.add(value)
        split = named.get(value, 'train') if named else split_of(value, parts)
        audio = next((name for name in manifests.AUDIO if row.get(name) is not None), None)
        if audio and isinstance(row[audio], str):
            row[audio] = str(paths.path(manifests.resolve(row[audio], manifest.parent)).resolve())
        rows[split].append(row)
        hours[split] += seconds / 3600
    if absent := sorted(set(named) - met):
        raise ValueError(f'{manifest}: no line has {field} = {", ".join(absent)}; it has {", ".join(sorted(met))}')
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        json_lines.write(out / f'{split}.jsonl', rows[split])
    return {split: (len(rows[split]), hours[split]) for split in SPLITS}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.splits',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('manifest')
    parser.add_argument('out')
    parser.add_argument('--field', required=True)
    parser.add_argument('--parts', type=int, default=5)
    parser.add_argument('--test', action='append', default=[], help='a value of the field')
    parser.add_argument('--validation', action='append', default=[], help='a value of the field')
    args = parser.parse_args(argv)
    try:
        counts = split_manifest(
            args.manifest,
            args.out,
            args.field,
            args.parts,
            tuple(args.test),
            tuple(args.validation),
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f'{error}\n')
    for split, (clips, hours) in counts.items():
        print(f'{split}: {clips} clips, {hours:.2f} h')


if __name__ == '__main__':
    main()
