"""Brings a public checkpoint in as a foundation: `slm-jax import SOURCE OUT`.

    slm-jax import flan-t5-base/ foundations/flan_t5_base       a directory of Hugging Face's layout
    slm-jax import hf:openai/whisper-small foundations/whisper_small
    slm-jax import qwen2.5-0.5b-instruct-q8_0.gguf foundations/qwen      a GGUF file, as llama.cpp and Ollama have them
    slm-jax import t5_1_1_base/ foundations/t5_1_1_base         a checkpoint of T5X, or its model directory

OUT is then what `FOUNDATIONS = {'llm': 'OUT'}` names in gin, or {'speech_encoder': 'OUT'}, with the model file
OUT/model.gin. It is there whole or not at all. The last letter of this file's name is Python's: `import` is a word of
its own.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from slm_jax import cli, paths


def import_checkpoint(source: str, out: str, dtype: str = 'bfloat16') -> dict[str, Any]:
    """Imports a checkpoint.

    Args:
        source: directory of Hugging Face's layout or of T5X's, hf:owner/name, or a GGUF file.
        out: directory that is made, and is not there yet.
        dtype: of the parameters in it.

    Returns:
        The card.

    Raises:
        CheckpointError: nothing that can be imported exactly; names the file, and the tensor or flag.
        FileExistsError: something is at `out`.
    """
    from slm_jax import foundations
    from slm_jax.importers import gguf, hugging_face, t5x
    from slm_jax.importers.hugging_face import directory

    path = paths.path(out).absolute()
    if path.exists():
        raise FileExistsError(f'{path} is there already; remove it, or give another directory.')
    source_dir = paths.local_directory(source)
    if t5x.is_checkpoint(source_dir):
        found = t5x.read(source_dir)
        imported = t5x.convert(found, path)
    elif file := gguf.find(source_dir):
        found, imported = gguf.convert(source, file, path)
    else:
        family, found = hugging_face.family(directory.read(source_dir))
        directory.fetch(found, family.FILES)
        imported = family.convert(found, path)
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
            'source': source,
            'revision': found.revision,
            'licence': found.licence,
            **imported.card,
            'configuration': found.config,
        }
        return foundations.save(path, imported.params, card, files, dtype)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog='slm-jax import', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        'source',
        metavar='SOURCE',
        help='a Hugging Face directory, hf:owner/name[@revision], a GGUF file, or T5X',
    )
    result.add_argument('out', metavar='OUT', help='directory of the foundation, which is not there yet')
    result.add_argument(
        '--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of the parameters (default: bfloat16)'
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(argv)
    try:
        card = import_checkpoint(args.source, args.out, args.dtype)
    except (ValueError, OSError) as error:
        return cli.fail('import', error, 2)
    licence = card['licence'] or 'not stated'
    print(f'wrote {args.out}: {card["fingerprint"]["num_params"]:,} parameters in {args.dtype}; licence: {licence}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
