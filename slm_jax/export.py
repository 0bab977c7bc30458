"""Writes what a training made in formats that others read: `slm-jax export MODEL_DIR OUT`.

    slm-jax export runs/slm out/slm          an adapter: trainable.safetensors and card.json
    slm-jax export runs/t5 out/t5            only the LLM was trained: a directory of transformers
    slm-jax export runs/slm out/slm --model  a model that answers: `slm-jax infer a.wav --model out/slm`

trainable.safetensors holds all that was trained, under its paths, and nothing frozen; card.json, and the file's own
header, name the foundations that it belongs to, with their fingerprints. Where nothing but the language model was
trained, OUT is a T5 that `T5ForConditionalGeneration.from_pretrained` loads, merged with what stayed frozen of it,
in float32, with its tokenizer. With --model OUT is a model's directory of one checkpoint without the optimizer, in
bfloat16: for MODEL wherever one is asked for, and for a further training to begin at. Its card calls public foundations
by their names, so that another machine finds or imports them. OUT is there whole or not at all.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from slm_jax import cli, paths
from slm_jax.data import seen

_PART = 'llm/'


def export(model_dir: str, out: str, step: int | None = None, model: bool = False) -> list[str]:
    """Exports a checkpoint.

    Args:
        model_dir: of a training.
        out: directory that is made, and is not there yet.
        step: of the checkpoint; None: the newest.
        model: whether `out` becomes a model's directory.

    Returns:
        Names of the files and folders in it.

    Raises:
        ValueError: no training, no such checkpoint, foundations that have changed, or a model that transformers does
            not have; names it and the remedy.
        FileExistsError: something is at `out`.
    """
    from slm_jax import foundations
    from slm_jax.exporters import ExportError, safetensors
    from slm_jax.importers.hugging_face.tensors import Tensor
    from slm_jax.training import checkpoints

    path = paths.path(out).absolute()
    if path.exists():
        raise FileExistsError(f'{path} is there already; remove it, or give another directory.')
    directory = foundations.find(model_dir)
    if foundations.card(directory).get('kind') != checkpoints.KIND:
        raise ExportError(f'{directory} is a foundation. What is exported is what a training made: give its MODEL_DIR.')
    trained, card = checkpoints.load_for_inference(directory, step)
    leaves = foundations.flatten(trained)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = None if paths.is_url(path) else path.parent
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=beside))
    try:
        temporary.chmod(0o755)
        if model:
            card = {**_portable(card), 'name': path.name}
            card['evaluations'] = foundations.card(directory).get('evaluations') or {}
            checkpoints.write_for_inference(temporary, trained, card, 'bfloat16')
            if (texts := seen.read(directory)) is not None:
                seen.write(temporary, texts)
        elif all(name.startswith(_PART) for name in leaves):
            _write_llm(temporary, directory, leaves, card)
        else:
            tensors = {name: Tensor(directory, leaf.shape, leaf.dtype, leaf.__array__) for name, leaf in leaves.items()}
            metadata = {'foundations': json.dumps(card['foundations'])}
            safetensors.write(temporary / 'trainable.safetensors', tensors, metadata)
        text = json.dumps(card, indent=2, ensure_ascii=False) + '\n'
        (temporary / foundations.CARD).write_text(text, encoding='utf-8')
        paths.put(temporary, path, last=foundations.CARD)
    finally:
        paths.remove(temporary)
    return sorted(file.name for file in path.iterdir())


def _portable(card: dict[str, Any]) -> dict[str, Any]:
    """A card that names no directory where a name would do, nor where a finished training was."""
    from slm_jax.foundations import named

    def called(entry, other):
        return {**entry, 'name': named.of_content(entry['fingerprint']['content']) or other}

    needed = {part: called(entry, entry['name']) for part, entry in card['foundations'].items()}
    first = {
        part: called(entry, pathlib.Path(entry['name']).name)
        for part, entry in (card.get('initialised_from') or {}).items()
    }
    return {**card, 'foundations': needed, 'initialised_from': first}


def _write_llm(out: pathlib.Path, directory: pathlib.Path, leaves: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes the language model of a training: `leaves` of it, the others as its foundation has them."""
    from slm_jax import foundations
    from slm_jax.data import vocabularies
    from slm_jax.exporters import ExportError
    from slm_jax.exporters import t5 as exporter
    from slm_jax.importers import t5 as importers_t5
    from slm_jax.inference import model
    from slm_jax.llms import t5
    from slm_jax.training import checkpoints, origins

    model.configure(card, [], [])
    llm = getattr(model.configured_system(), 'llm', None)
    if not isinstance(llm, t5.T5):
        raise ExportError(f'{directory}: its language model is a {type(llm).__name__}; only a T5 can be exported.')
    wanted = {_PART + path: leaf for path, leaf in importers_t5.shapes(llm.config).items()}
    missing = {path: leaf for path, leaf in wanted.items() if path not in leaves}
    if missing:
        needed = {'llm': card['foundations']['llm']}
        found = origins.find({'llm': needed['llm']['name']})
        checkpoints.check_foundations(directory, needed, {'llm': found[0].describe()})
        leaves = leaves | foundations.flatten(origins.load(found, foundations.unflatten(missing)))
    vocabulary = foundations.find(vocabularies.names()['llm'])
    exporter.write(out, llm.config, {path.removeprefix(_PART): leaves[path] for path in wanted}, vocabulary)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog='slm-jax export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument('model_dir', metavar='MODEL_DIR', help='directory of a training')
    result.add_argument('out', metavar='OUT', help='directory that is made, and is not there yet')
    result.add_argument('--step', type=int, help='of the checkpoint (default: the newest)')
    result.add_argument('--model', action='store_true', help="OUT is a model's directory, which answers")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(argv)
    try:
        files = export(args.model_dir, args.out, args.step, args.model)
    except (ValueError, OSError) as error:
        return cli.fail('export', error, 2)
    print(f'wrote {args.out}: {", ".join(files)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
