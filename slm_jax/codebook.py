"""Discrete units: fits a codebook of speech, encodes recordings and images, and makes units heard and seen again.

    slm-jax codebook fit OUT --encoder whisper_base --manifest train.jsonl --gin.K=500 --gin.LAYER=5
    slm-jax codebook encode OUT units.jsonl --manifest dev.jsonl
    slm-jax codebook encode OUT units.jsonl --task voice_prompts_asr --split train --processes 4
    slm-jax codebook read mimi/ units.jsonl --manifest dev.jsonl --size 2048 --codebooks 8
    slm-jax codebook pair english.jsonl german.jsonl units.jsonl
    slm-jax codebook measure OUT --sentences texts.txt --voice en-us --voice en-us+f3
    slm-jax codebook encode IMAGE_MODEL tokens.jsonl --manifest pictures/test.jsonl
    slm-jax codebook decode MODEL units.jsonl FOLDER

`fit` runs k-means (scikit-learn) over what the encoder gives, or a layer within it, and writes a directory with a card;
the frames are in shards on the disk, and one shard and one batch of them in memory (slm_jax/codebooks/kmeans.py).
`encode` writes the manifest's lines, or the task's, with `units`, without repetitions, and the `durations` of each in
frames. Both go on after what is done when a run was cut. `read` puts units or image tokens of other programs on the
lines of a manifest, by their ids (slm_jax/codebooks/unit_files.py has the kinds of files). `pair` joins files of the
same sentences, by their ids: units of the second are the first one's `target_units`, for speech to speech. `measure`
speaks sentences with espeak-ng, whose phones are known (slm_jax/codebooks/measures.py). `decode` writes what a vocoder
says of units, or the images of tokens, also of predictions.jsonl of `slm-jax evaluate`: its manifest says what was to
be said, for Whisper to transcribe (python -m slm_jax.evaluation.whisper_decoder). Both kinds of MODEL are trained by
`slm-jax train --gin_file codebooks/vocoder.gin`, or codebooks/image.gin.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, configuration, import_, paths

_KMEANS = 'codebooks/kmeans.gin'


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax codebook'
    commands = result.add_subparsers(dest='command', required=True, metavar='fit|encode|read|pair|decode|measure')
    fit = commands.add_parser('fit', help='fit a codebook to an encoder')
    fit.add_argument('out', metavar='OUT', help='directory')
    fit.add_argument('--encoder', required=True, metavar='NAME', help='a foundation, by name or directory')
    fit.add_argument('--frames', metavar='DIR', help='keep the frames there, for other K (default: they are removed)')
    encode = commands.add_parser('encode', help='write the units of recordings, or the tokens of images')
    encode.add_argument('codebook', metavar='CODEBOOK', help='directory that `fit` wrote, or of a training of images')
    encode.add_argument('out', metavar='OUT', help='JSONL file')
    for each in (fit, encode):
        each.add_argument('--manifest', metavar='FILE', help='JSONL, a recording or an image a line')
        each.add_argument('--task', metavar='NAME', help='registered task or mixture')
        each.add_argument('--split', default='train', help='of the task (default: train)')
        each.add_argument('--cache_dir', help='where prepared tasks are')
        each.add_argument('--data_dir', help='where TFDS keeps its data')
        each.add_argument('--on_bad_example', choices=('raise', 'skip'), default='raise')
        each.add_argument('--processes', type=int, default=1, help='each with an encoder of its own (default: 1)')
    read = commands.add_parser('read', help="put others' units or image tokens on the lines of a manifest")
    read.add_argument('units', metavar='FILE', help='unit file, or a folder of .npy')
    read.add_argument('out', metavar='OUT', help='JSONL file')
    read.add_argument('--manifest', required=True, metavar='FILE', help='JSONL, whose ids the unit file has')
    read.add_argument('--size', type=int, required=True, metavar='N', help='of each codebook')
    read.add_argument('--codebooks', type=int, default=1, metavar='N', help='of a frame (default: 1)')
    read.add_argument('--images', action='store_true', help='they are tokens of images')
    pair = commands.add_parser('pair', help='join units of the same sentences in two languages')
    pair.add_argument('units', metavar='SOURCE', help='unit file whose lines are written')
    pair.add_argument('target', metavar='TARGET', help='unit file that has their ids, in the other language')
    pair.add_argument('out', metavar='OUT', help='JSONL file')
    decode = commands.add_parser('decode', help='write what units sound like, or what tokens look like')
    decode.add_argument('model', metavar='MODEL', help='directory of a training of a vocoder, or of images')
    decode.add_argument('units', metavar='FILE', help='JSONL and other unit files (slm_jax/codebooks/unit_files.py)')
    decode.add_argument('out', metavar='OUT', help='folder')
    decode.add_argument('--predict_durations', action='store_true', help="of a vocoder: in the place of the file's")
    measure = commands.add_parser('measure', help='tell how good codebooks are, on speech whose phones are known')
    measure.add_argument('codebooks', metavar='CODEBOOK', nargs='+')
    measure.add_argument('--sentences', required=True, metavar='FILE', help='a sentence a line')
    measure.add_argument('--voice', action='append', metavar='VOICE', help="espeak-ng's (default: en-us, en-us+f3)")
    measure.add_argument('--vocoder', metavar='DIR', help='also units that it said are encoded again')
    measure.add_argument('--json', metavar='FILE', help='write the table there too')
    for each in (encode, measure):
        each.add_argument('--encoder', metavar='NAME', help='where the encoder is now, if not where the card says')
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    args = parser().parse_args(argv)
    try:
        commands = {'fit': _fit, 'encode': _encode, 'read': _read, 'pair': _pair, 'decode': _decode}
        return (commands | {'measure': _measure})[args.command](args)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        return cli.fail('codebook', error)


def _fit(args: argparse.Namespace) -> int:
    from slm_jax import foundations
    from slm_jax.codebooks import codebook, kmeans, shards, units
    from slm_jax.training import checkpoints

    if paths.path(args.out).exists():
        raise ValueError(f'{args.out} is there. Give another OUT, or remove it.')
    import_.ensure(args.encoder)
    recordings, data = _recordings(args, pathlib.Path())
    configuration.parse_gin([_KMEANS, _model_file(args.encoder), *args.gin_file], args.gin_bindings)
    settings = configuration.configured(kmeans.KMeans)()
    encoder = _encoder(args.encoder, settings.layer)
    rate = encoder.frames_per_second
    frames = pathlib.Path(args.frames or f'{args.out}.frames')
    heard = units.FrameShards(recordings, encoder, args.on_bad_example)
    names = [f'{number:05d}.npy' for number in range(heard.shards)]
    run = {'encoder': dict(encoder.identity), **data}
    files = shards.make(frames, run, names, heard, args.processes, 'Encoding')
    centroids, figures = settings.fit(files)
    card = {
        'name': pathlib.Path(args.out).name,
        'kind': codebook.KIND,
        'encoder': dict(encoder.identity),
        'foundation': encoder.foundations['speech_encoder'],
        'k': settings.k,
        'layer': settings.layer,
        'frames_per_second': rate,
        'fitted': {**data, **figures, 'hours': round(figures['frames'] / rate / 3600, 3)},
        'versions': checkpoints.versions(),
        'config': configuration.operative_config(),
    }
    card = foundations.save(args.out, {'centroids': centroids}, card)
    if not args.frames:
        paths.remove(frames)
    print(
        f'{args.out}: {settings.k} units of {codebook.named(card["encoder"])}, {figures["used"]} of them used; '
        f'{figures["frames"]:,} frames, {figures["variance_explained"]:.1%} of their variance explained'
    )
    return 0


def _encode(args: argparse.Namespace) -> int:
    from slm_jax import foundations
    from slm_jax.codebooks import codebook, shards, units
    from slm_jax.training import checkpoints

    if foundations.card(args.codebook).get('kind') == checkpoints.KIND:
        return _encode_images(args)
    own = codebook.Codebook.load(args.codebook)
    encoder = _encoder_of(own, args.encoder)
    recordings, data = _recordings(args, pathlib.Path(args.out).absolute().parent)
    heard = units.UnitShards(recordings, encoder, args.on_bad_example, str(paths.path(args.codebook).absolute()))
    names = [f'{number:05d}.jsonl' for number in range(heard.shards)]
    folder = pathlib.Path(f'{args.out}.parts')
    files = shards.make(folder, {'codebook': own.label, **data}, names, heard, args.processes, 'Encoding')
    told = units.join(files, pathlib.Path(args.out))
    paths.remove(folder)
    hours = told['frames'] / own.frames_per_second / 3600
    print(f'{args.out}: {told["recordings"]} recordings, {hours:.2f} h, {told["units"]:,} units of {own.label}')
    for error in told['errors']:
        print(f'    {error}')
    return 0


def _encode_images(args: argparse.Namespace) -> int:
    from slm_jax.codebooks import image_files, images

    if args.task or not args.manifest:
        raise ValueError('images are read from a manifest: give --manifest FILE, with an "image" a line.')
    own = images.ImageCodebook.load(args.codebook)
    told = image_files.encode(own, args.manifest, pathlib.Path(args.out), args.on_bad_example)
    print(
        f'{args.out}: {told["images"]} images of {own.shape[0]} x {own.shape[1]} tokens, {told["used"]} of {own.size} '
        f'used, {told["bits"]:.2f} bits a token; again they differ by {told["error"]:.2f} of 255 a pixel (RMS), '
        f'{told["psnr"]:.1f} dB'
    )
    for error in told['errors']:
        print(f'    {error}')
    return 0


def _read(args: argparse.Namespace) -> int:
    from slm_jax.codebooks import unit_files

    for name in ('size', 'codebooks'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name} {getattr(args, name)}: a whole number from 1 on was expected.')
    if args.images and args.codebooks > 1:
        raise ValueError('--codebooks: tokens of images are of one.')
    field, size = unit_files.TOKENS if args.images else unit_files.UNITS, args.size * args.codebooks
    told = unit_files.beside(args.units, args.manifest, pathlib.Path(args.out), args.size, args.codebooks, field)
    print(f'{args.out}: {told["lines"]} lines ({"IMAGE_TOKENS" if args.images else "SPEECH_UNITS"} = {size})')
    if alone := told['alone']:
        print(f'    {len(alone)} of {args.manifest} are not in {args.units} and are left out, the first: {alone[0]!r}')
    return 0


def _pair(args: argparse.Namespace) -> int:
    from slm_jax.codebooks import unit_files

    told = unit_files.pair(args.units, args.target, pathlib.Path(args.out))
    print(f'{args.out}: {told["pairs"]} pairs')
    if alone := told['alone']:
        print(f'    {len(alone)} of {args.units} have none in {args.target} and are left out, the first: {alone[0]!r}')
    return 0


def _decode(args: argparse.Namespace) -> int:
    from slm_jax.codebooks import image_files, images, trained, unit_speech, vocoder
    from slm_jax.systems.image_vq import ImageVq
    from slm_jax.systems.unit_vocoder import UnitVocoder

    out = pathlib.Path(args.out)
    if out.exists():
        raise ValueError(f'{out} is there. Give another OUT, or remove it.')
    system, params, card = trained.load(args.model, UnitVocoder, ImageVq)
    part = out.with_name(f'{out.name}.part')
    paths.remove(part)
    part.mkdir(parents=True)
    if isinstance(system, ImageVq):
        if args.predict_durations:
            raise ValueError('--predict_durations: images have none.')
        told = image_files.decode(images.ImageCodebook.of(system, params, card), args.units, part)
    else:
        own = vocoder.Vocoder.of(system, params, card)
        told = unit_speech.decode(own, args.units, part, args.predict_durations)
    part.rename(out)
    print(f'{args.out}: {told}')
    return 0


def _measure(args: argparse.Namespace) -> int:
    from slm_jax.card import table
    from slm_jax.codebooks import codebook, measures, vocoder
    from slm_jax.corpora import phones

    texts = [line.strip() for line in paths.path(args.sentences).read_text(encoding='utf-8').splitlines()]
    texts = list(filter(None, texts))
    if not texts:
        raise ValueError(f'{args.sentences}: the file is empty. Write a sentence a line.')
    spoken = [
        measures.Sentence(text, voice, said.samples, said.phones)
        for voice in args.voice or ('en-us', 'en-us+f3')
        for text, said in zip(texts, phones.spoken(voice, texts))
    ]
    results = {}
    for name in args.codebooks:
        own = codebook.Codebook.load(name)
        speaker = vocoder.Vocoder.load(args.vocoder) if args.vocoder else None
        if speaker:
            speaker.check(own.label)
        encoder = _encoder_of(own, args.encoder)
        longest = max(spoken, key=lambda sentence: len(sentence.samples))
        if len(longest.samples) + measures.LATER > encoder.most_samples:
            raise ValueError(
                f'{args.sentences}: {longest.text[:40]!r}… takes {len(longest.samples) / 16_000:.1f} s, and the speech '
                f'encoder {encoder.most_samples / 16_000:g} s at once. Cut the line.'
            )
        results[name] = measures.measure(own, encoder, spoken, speaker)
    rows = [('', *results)]
    rows += [(measure, *(f'{each[measure]:.4g}' for each in results.values())) for measure in [*results.values()][0]]
    print('\n'.join(table(rows)))
    if args.json:
        paths.write(paths.path(args.json), json.dumps(results, indent=2) + '\n')
    return 0


def _encoder(name: str, layer: int | None) -> Any:
    """The frozen encoder that the configuration describes."""
    from slm_jax.systems import speech_encoder
    from slm_jax.training import frozen_encoder

    speech = configuration.configured(speech_encoder.SpeechEncoder)()
    return frozen_encoder.of_speech(speech, {'speech_encoder': name}, layer)


def _encoder_of(own: Any, given: str | None) -> Any:
    """The encoder of a codebook, where the card says or where it is given.

    Raises:
        CodebookError: there is another one.
    """
    from slm_jax import foundations

    card, name = own.card, given or own.card['foundation']
    import_.ensure(name)
    fingerprint = foundations.card(name).get('fingerprint', {}).get('content', '')
    if fingerprint != card['encoder']['fingerprint']:
        own.check({'name': name, 'fingerprint': fingerprint, 'layer': card['layer']})
    with tempfile.NamedTemporaryFile('w', suffix='.gin', encoding='utf-8') as file:
        file.write(card['config'])
        file.flush()
        configuration.parse_gin([file.name])
    encoder = _encoder(name, card['layer'])
    own.check(encoder.identity)
    return encoder


def _model_file(name: str) -> str:
    """The model file of an encoder: ours, or the one that was imported with it."""
    from slm_jax import foundations

    directory = foundations.find(name)
    with contextlib.suppress(configuration.ConfigurationError):
        return str(configuration.find_gin_file(f'models/{foundations.card(directory)["name"]}.gin'))
    if not (directory / foundations.MODEL_FILE).is_file():
        raise ValueError(
            f'{name}: which encoder is it? There is no {foundations.MODEL_FILE} beside its card, nor a file of its '
            'name in gin/models.'
        )
    return str(directory / foundations.MODEL_FILE)


def _recordings(args: argparse.Namespace, to: pathlib.Path) -> tuple[Any, Mapping[str, Any]]:
    """What is read, and what says which that is."""
    from slm_jax.codebooks import recordings

    if bool(args.manifest) == bool(args.task):
        raise ValueError('give --manifest FILE or --task NAME.')
    if args.processes < 1:
        raise ValueError(f'--processes {args.processes}: a whole number from 1 on was expected.')
    if args.manifest:
        content = paths.path(args.manifest).read_bytes()
        told = {'manifest': str(args.manifest), 'content': hashlib.sha256(content).hexdigest()}
        return recordings.Manifest(args.manifest, to), told
    import slm_jax.tasks  # isort: skip  first: it loads TensorFlow quietly  # noqa: F401

    import seqio

    from slm_jax.data import cache, mixtures

    if args.data_dir:
        seqio.set_tfds_data_dir_override(args.data_dir)
    tasks, _ = mixtures.tasks_and_rates(args.task)
    for task in tasks:
        cache.fetch_source(task)
    stores = cache.open_stores(tasks, args.split, args.cache_dir, args.on_bad_example)
    directories = tuple(dict.fromkeys(store.directory for store in stores))
    stored: dict[str, Any] = {
        'task': args.task,
        'split': args.split,
        'stores': [directory.name for directory in directories],
    }
    return recordings.Stored(directories), stored


if __name__ == '__main__':
    sys.exit(main())
