"""Reads texts aloud: `slm-jax synthesize IN OUT` makes spoken instructions, questions, dialogs or sentences of them.

IN is a set of one of the kinds below. OUT gets audio/*.flac (16 kHz) and a manifest for each split, {train, validation,
test}.jsonl, as `evaluate --manifest`, `infer --manifest` and `tasks.manifest` (task = 'instruct') read it: id, audio,
text (what is said), instruction (what stays written), target, answers, lang, source, speaker (the voice), duration.

    slm-jax synthesize alpaca_data.json spoken --voice espeak-ng --voice flite
    slm-jax synthesize alpaca_data.json spoken --speak input
    slm-jax synthesize train-v1.1.json passages --speak context        the question is written
    slm-jax synthesize train-v1.1.json questions --speak question      the passage is
    slm-jax synthesize dialogs.jsonl dialogs --speak turn              only the last turn is spoken
    slm-jax synthesize orders.txt orders --voice 'amy=piper --model amy.onnx --output_file {out}' --split test

A voice, and what is said, is of one split and of no other. A run that was broken off goes on where it was when it is
given again: OUT is there when it is whole, OUT.part until then. What is read, by whom and how fast depends on IN and
the options alone.
"""

import argparse
import collections
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import os
import pathlib
import random
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float

from slm_jax import cli, paths
from slm_jax.audio.waveforms import SAMPLE_RATE
from slm_jax.corpora import splits
from slm_jax.data import json_lines

_PAUSE = 0.3  # seconds between turns
_NAME = r'[A-Za-z0-9_.-]+'
_FEW = 10  # voices: of so many, hashing their names leaves some for each split
_DONE = 'done.jsonl'


@dataclasses.dataclass(frozen=True)
class Voice:
    """One voice: `voice` is its name in the engine, or a command; `name` what people know it by."""

    engine: str
    voice: str
    name: str

    @property
    def person(self) -> str:
        """Who speaks: espeak-ng's throats are the same in all accents."""
        return f'espeak-ng/+{self.voice.partition("+")[2]}' if self.engine == 'espeak-ng' else self.name


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from slm_jax.corpora import text_sets, voices

    def listed(doc):
        return doc.split('\n\n', 1)[1].rstrip()

    result = argparse.ArgumentParser(
        prog='slm-jax synthesize',
        description=__doc__,
        epilog=f'kinds of IN:\n{listed(text_sets.__doc__)}\n\nvoices:\n{listed(voices.__doc__)}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument('input', metavar='IN')
    result.add_argument('out', metavar='OUT')
    texts = result.add_argument_group('texts')
    texts.add_argument('--kind', choices=text_sets.FIELDS, default='', help='of IN (default: told by its content)')
    texts.add_argument(
        '--speak',
        metavar='FIELDS',
        help='these are spoken: input, or history,turn (default: instruction; context; history,turn; text)',
    )
    texts.add_argument(
        '--instruction',
        action='append',
        default=[],
        help='asks for the answer where nothing is written; repeated: in turn (default: instructions.py)',
    )
    texts.add_argument('--lang', default='en', help='of lines that name none (default: en)')
    texts.add_argument('--limit', type=int, metavar='N', help='the first N clips')
    voice = result.add_argument_group('voices')
    voice.add_argument(
        '--voice',
        action='append',
        default=[],
        metavar='VOICE',
        help='ENGINE for all of its voices, ENGINE/VOICE, or NAME=COMMAND (default: espeak-ng)',
    )
    voice.add_argument('--kokoro', metavar='DIR', help="folder of kokoro-js's voices, for the engine kokoro")
    voice.add_argument(
        '--speeds', default='0.85,1.2', metavar='FROM,TO', help='drawn for each clip (default: %(default)s)'
    )
    voice.add_argument('--readings', type=int, default=1, metavar='N', help='of each text, each by another voice')
    splits = result.add_argument_group('splits')
    splits.add_argument('--split', choices=('train', 'validation', 'test'), help='all of IN is of this one')
    splits.add_argument(
        '--parts', type=int, default=20, metavar='N', help='one text in N is test, and one validation (default: 20)'
    )
    for name in ('validation', 'test'):
        splits.add_argument(
            f'--{name}',
            action='append',
            default=[],
            metavar='VOICE',
            help='a voice of this split, as flite/slt, or flite/* (default: of ten and more a fifth, by a hash)',
        )
    sound = result.add_argument_group('sound')
    sound.add_argument(
        '--augment',
        default='',
        metavar='KINDS',
        help='of room, noise, telephone, codec: each clip gets each of these at times. For training leave it to '
        'train/loader.SpeechTextLoader.augmentation, which draws anew each time',
    )
    sound.add_argument('--noise_dir', default='', metavar='DIR', help='recordings that are the noise of --augment')
    sound.add_argument('--max_seconds', type=float, default=30.0, help='longer clips are left out (default: 30)')
    result.add_argument('--processes', type=int, default=len(os.sched_getaffinity(0)), metavar='N')
    result.add_argument('--seed', type=int, default=0)
    return result


def voices_of(spec: str, lang: str, engines: Any) -> list[Voice]:
    """The voices that `--voice spec` has for a language; [] if it speaks another.

    Raises:
        ValueError: an engine that is not known, a file that is not there, or a command that cannot be.
    """
    from slm_jax.corpora import voices

    if re.fullmatch(_NAME + '=.*', spec, re.DOTALL):
        name, _, command = spec.partition('=')
        voices.of_command(command)
        return [Voice('command', command, name)]
    engine, slash, one = spec.partition('/')
    if engine not in voices.ENGINES or (slash and not one):
        raise ValueError(
            f'--voice {spec}: there are {", ".join(voices.ENGINES)}, their voices, as flite/slt, and commands, as '
            'NAME=COMMAND with {out}.'
        )
    if one.endswith('.onnx'):
        if not pathlib.Path(one).is_file():
            raise ValueError(f'--voice {spec}: there is no file {one}. Download a voice of Piper, and its .json.')
        return [Voice(engine, one, f'{engine}/{pathlib.Path(one).stem}')]
    names = engines.voices(engine, lang)
    if one:
        accent = one.partition('+')[0].split('-')[0]
        names = [one] * (one in names or (engine == 'espeak-ng' and accent == lang.split('-')[0]))
    return [Voice(engine, name, f'{engine}/{name}') for name in names]


def split_voices(groups: Sequence[Sequence[Voice]], args: argparse.Namespace) -> dict[str, str]:
    """{person: split}: as --validation and --test name them, or by a hash, or all of one.

    Raises:
        ValueError: a name that no voice has.
    """
    everybody = {voice.person: voice for group in groups for voice in group}
    if not args.validation and not args.test:
        if len(everybody) < _FEW:
            return dict.fromkeys(everybody, args.split or 'train')
        return {person: splits.split_of(person) for person in everybody}
    result = dict.fromkeys(everybody, 'train')
    for split in ('validation', 'test'):
        for pattern in getattr(args, split):
            met = {v.person for g in groups for v in g if fnmatch.fnmatchcase(v.name, pattern) or v.person == pattern}
            if not met:
                some = ', '.join(sorted({voice.name for voice in everybody.values()})[:8])
                raise ValueError(f'--{split} {pattern}: no --voice is called so; there are {some}.')
            if twice := [person for person in met if result[person] not in ('train', split)]:
                raise ValueError(f'--test {pattern}: {twice[0]} is of --validation already; a voice is of one split.')
            result |= dict.fromkeys(met, split)
    return result


def cast(clips: Sequence[Any], args: argparse.Namespace, engines: Any) -> tuple[list[dict], dict[str, Any]]:
    """Which split and language each clip is of, and who may read it.

    Returns:
        ({'turns', 'lang', 'split'} of each clip, {'lang split': the voices of each --voice}).

    Raises:
        ValueError: nobody speaks a language, or is of a split.
    """
    specs = args.voice or ['espeak-ng']
    langs = dict.fromkeys(clip.rows[0].get('lang') or args.lang for clip in clips)
    given = {lang: [voices_of(spec, lang, engines) for spec in specs] for lang in langs}
    for number, spec in enumerate(specs):
        if not any(groups[number] for groups in given.values()):
            engine = spec.partition('/')[0]
            there = ', '.join(sorted({name for lang in langs for name in engines.voices(engine, lang)})[:8])
            raise ValueError(f'--voice {spec} does not speak {", ".join(langs)}; {engine} has {there or "no voice"}.')
    for lang, groups in given.items():
        if not any(groups):
            raise ValueError(f'no --voice speaks {lang!r}, which lines of {args.input} are in. Give one that does.')
    of = split_voices([group for groups in given.values() for group in groups], args)
    allowed: dict[str, Any] = {}
    for lang, groups in given.items():
        for split in splits.SPLITS:
            of_split = [[voice for voice in group if of[voice.person] == split] for group in groups]
            if any(of_split):
                allowed[f'{lang} {split}'] = [group for group in of_split if group]
    jobs = []
    for clip in clips:
        lang, split = clip.rows[0].get('lang') or args.lang, clip.rows[0].get('split') or args.split
        if split is None:
            split = splits.split_of(clip.group, args.parts)
            split = split if f'{lang} {split}' in allowed else 'train'
        if f'{lang} {split}' not in allowed:
            raise ValueError(
                f'no voice for {lang!r} is of the split {split!r}, and {clip.rows[0]["id"]!r} is. Name the voices of '
                '--validation and --test, or give more.'
            )
        jobs.append({'turns': clip.turns, 'lang': lang, 'split': split})
    used = {job['split'] for job in jobs}
    for number, spec in enumerate(specs):
        if not used & {of[voice.person] for groups in given.values() for voice in groups[number]}:
            print(
                f'--voice {spec} reads nothing: it is of a split (by the hash of its name) of which there is no text.'
            )
    return jobs, allowed


@functools.cache
def _engines(kokoro: str) -> Any:
    from slm_jax.corpora import voices

    return voices.Engines(kokoro)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads clips: what a process that works on them is given.

    Attributes:
        out: where audio/*.flac are written.
        kokoro: folder of Kokoro's files, '' where it does not read.
        voices: by language and split, those of each --voice.
        speeds: from, to.
        max_seconds: of a clip.
        seed: of all that is drawn.
        augment: what is done to each clip, or None.
    """

    out: pathlib.Path
    kokoro: str
    voices: Mapping[str, Sequence[Sequence[Voice]]]
    speeds: tuple[float, float]
    max_seconds: float
    seed: int
    augment: Any

    def __call__(self, job: tuple[int, dict]) -> dict:
        """Reads clip n; returns what is to be remembered of it."""
        from slm_jax.corpora import clips

        number, clip = job
        rng = random.Random(f'{self.seed}/{number}')
        groups = self.voices[f'{clip["lang"]} {clip["split"]}']
        cast: dict[int, Voice] = {}
        for speaker, _ in clip['turns']:
            if speaker not in cast:
                drawn = [rng.choice(rng.choice(groups)) for _ in range(20)]
                taken = {voice.person for voice in cast.values()}
                cast[speaker] = next((voice for voice in drawn if voice.person not in taken), drawn[0])
        speed = rng.uniform(*self.speeds)
        try:
            parts = [self.read(cast[speaker], text, clip['lang'], speed) for speaker, text in clip['turns']]
        except ValueError as error:
            return {'number': number, 'left_out': str(error)}
        pause = np.zeros(int(_PAUSE * SAMPLE_RATE), np.float32)
        samples = np.concatenate([piece for part in parts for piece in (part, pause)][:-1])
        samples = samples / max(1.0, 1.01 * np.abs(samples).max())
        if samples.size > self.max_seconds * SAMPLE_RATE:
            return {'number': number, 'too_long': round(samples.size / SAMPLE_RATE, 3)}
        if self.augment:
            samples = self.augment((samples * 32767).astype(np.int16), (self.seed, number)) / 32768
        audio = f'audio/{number:06d}.flac'
        speaker = ' + '.join(voice.name for voice in cast.values())
        return {'number': number, 'audio': audio, 'speaker': speaker, 'duration': clips.save(self.out / audio, samples)}

    def read(self, voice: Voice, text: str, lang: str, speed: float) -> Float[np.ndarray, ' samples']:
        """A text in a voice, at 16 kHz.

        Raises:
            ValueError: it was not read.
        """
        samples, rate = _engines(self.kokoro).read(voice.engine, voice.voice, text, lang, speed)
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
        if samples.size < 0.05 * SAMPLE_RATE or not np.abs(samples).max() > 1e-4:
            raise ValueError(f'{voice.name} read {text!r} in silence')
        return samples

    def check(self) -> None:
        """Lets a voice of each --voice read a number, to say at once what is not installed.

        Raises:
            ValueError: it cannot be read.
        """
        for of, group in [(of, group) for of, groups in self.voices.items() for group in groups]:
            try:
                self.read(group[0], '1 2 3', of.split()[0], 1.0)
            except ImportError as error:
                raise ValueError(f"--voice {group[0].name}: {error}. pip install 'slm_jax[voices]'") from None
            except (RuntimeError, ValueError) as error:
                raise ValueError(f'--voice {group[0].name}: {error}') from None


def synthesize(args: argparse.Namespace) -> dict[str, tuple[int, float, int]]:
    """Does what the command line says; returns {split: (lines, hours, voices)}.

    Raises:
        ValueError: wrong arguments, or a set or voice that cannot be read.
        RuntimeError: many texts were not read.
    """
    from slm_jax.audio import augmentation
    from slm_jax.corpora import clips, text_sets, voices

    speeds, augment = _checked(args), None
    if args.augment:
        chances: dict[str, Any] = {
            kind: getattr(augmentation.WaveformAugmentation, kind) for kind in args.augment.split(',')
        }
        rest: dict[str, Any] = dict.fromkeys(set(augmentation.KINDS) - set(chances), 0.0)
        augment = augmentation.WaveformAugmentation(**chances, **rest, noise_dir=args.noise_dir)
        augment.check()
    kind, examples = text_sets.read(args.input, args.kind)
    spoken = args.speak.split(',') if args.speak else text_sets.SPOKEN[kind]
    if wrong := [name for name in spoken if name not in text_sets.FIELDS[kind]]:
        raise ValueError(f'--speak {wrong[0]}: a set of kind {kind!r} has {", ".join(text_sets.FIELDS[kind])}.')
    made, left_out = text_sets.clips(examples, spoken, args.instruction)
    made = made[: args.limit]
    if not made:
        reasons = ', '.join(f'{count} {reason}' for reason, count in left_out.items())
        raise ValueError(f'{args.input}: nothing of it can be spoken ({reasons}). Choose other fields (--speak).')
    out, part = pathlib.Path(args.out), pathlib.Path(f'{args.out}.part')
    with contextlib.ExitStack() as stack:
        kokoro = ''
        if args.kokoro:
            kokoro = stack.enter_context(tempfile.TemporaryDirectory())
            voices.kokoro_files(args.kokoro, pathlib.Path(kokoro))
        jobs, allowed = cast(made, args, _engines(kokoro))
        read_by = {of: [[voice.name for voice in group] for group in groups] for of, groups in allowed.items()}
        rows = hashlib.sha256(repr([(clip.rows, job) for clip, job in zip(made, jobs)]).encode()).hexdigest()
        run: dict[str, Any] = {'texts': rows, 'voices': hashlib.sha256(repr(read_by).encode()).hexdigest()}
        run |= {'speeds': list(speeds), 'readings': args.readings, 'seed': args.seed, 'max_seconds': args.max_seconds}
        run['augmentation'] = repr(augment)
        jobs = [job for job in jobs for _ in range(args.readings)]
        made = [clip for clip in made for _ in range(args.readings)]
        if out.exists():
            if not (out / _DONE).is_file() or json_lines.read(out / _DONE)[:1] != [run]:
                raise ValueError(f'{out} is there, and was not made by this command. Give another OUT, or remove it.')
            part = out
        (part / 'audio').mkdir(parents=True, exist_ok=True)
        reader = Reader(part, kokoro, allowed, speeds, args.max_seconds, args.seed, augment)
        if len(clips.begun(part / _DONE, run)) < len(jobs):
            reader.check()
        done = clips.make(part / _DONE, run, list(enumerate(jobs)), reader, args.processes)
    left_out[f'longer than {args.max_seconds:g} s'] = sum('too_long' in each for each in done)
    left_out['not read'] = sum('left_out' in each for each in done)
    if not any('audio' in each for each in done):
        raise ValueError(f'{args.input}: nothing is left of it: {_reasons(left_out)}. {part} has what was read.')
    told = _manifests(part, made, jobs, done, args)
    part.rename(out)
    if any(left_out.values()):
        print(f'left out: {_reasons(left_out)}')
    return told


def _reasons(left_out: Mapping[str, int]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in left_out.items() if count)


def _checked(args: argparse.Namespace) -> tuple[float, float]:
    """Refuses arguments that cannot be; returns the speeds."""
    from slm_jax.audio import augmentation

    if paths.is_url(args.out):
        raise ValueError(f'{args.out}: OUT is a folder of this machine; copy it where it is wanted.')
    for name, least in (('readings', 1), ('processes', 1), ('parts', 3), ('limit', 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f'--{name} {getattr(args, name)}: a whole number from {least} on was expected.')
    try:
        slow, fast = map(float, args.speeds.split(','))
    except ValueError:
        slow = fast = 0.0
    if not 0.25 <= slow <= fast <= 4:
        raise ValueError(f'--speeds {args.speeds}: FROM,TO between 0.25 and 4 was expected, 1 is as usual.')
    if wrong := [kind for kind in filter(None, args.augment.split(',')) if kind not in augmentation.KINDS]:
        raise ValueError(f'--augment {wrong[0]}: there are {", ".join(augmentation.KINDS)}.')
    if args.noise_dir and 'noise' not in args.augment.split(','):
        raise ValueError('--noise_dir: give --augment noise, or leave it out.')
    return slow, fast


def _manifests(
    part: pathlib.Path, made: Sequence[Any], jobs: Sequence[dict], done: Sequence[dict], args: argparse.Namespace
) -> dict[str, tuple[int, float, int]]:
    """Writes the manifest of each split that has lines."""
    lines: dict[str, list[dict]] = collections.defaultdict(list)
    hours: collections.Counter = collections.Counter()
    source = pathlib.PurePath(args.input).stem
    for clip, job, each in zip(made, jobs, done, strict=True):
        if 'audio' not in each:
            continue
        hours[job['split']] += each['duration'] / 3600
        of_clip = {'speaker': each['speaker'], 'duration': each['duration']}
        for row in clip.rows:
            name = row['id'] if args.readings == 1 else f'{row["id"]}/{each["number"] % args.readings}'
            row = {k: v for k, v in row.items() if k not in ('id', 'lang', 'split')}
            line = {'id': name, 'audio': each['audio'], **row, 'lang': job['lang']}
            lines[job['split']].append({'source': source, **line, **of_clip})
    for split, rows in lines.items():
        first = ('id', 'audio', 'text', 'instruction', 'target', 'answers', 'lang', 'source', 'speaker', 'duration')
        ordered = [{name: row[name] for name in (*first, *row) if name in row} for row in rows]
        json_lines.write(part / f'{split}.jsonl', ordered)
    return {
        split: (len(lines[split]), hours[split], len({v for row in lines[split] for v in row['speaker'].split(' + ')}))
        for split in splits.SPLITS
        if split in lines
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    args = parser().parse_args(argv)
    try:
        told = synthesize(args)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        return cli.fail('synthesize', error)
    for split, (lines, hours, voices) in told.items():
        print(f'{split}: {lines} lines, {hours:.2f} h, {voices} voices')
    if set(told) == {'train'} and not args.split:
        print(
            'No voice is left for validation and test, so that all is for training: name some (--validation, --test).'
        )
    return 0


if __name__ == '__main__':
    sys.exit(main())
