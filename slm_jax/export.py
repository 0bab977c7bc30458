"""Writes what a training made in formats that others read: `slm-jax export MODEL_DIR OUT`.

    slm-jax export runs/slm out/slm          an adapter: trainable.safetensors and card.json
    slm-jax export runs/t5 out/t5            only the LLM was trained: a directory of transformers
    slm-jax export runs/slm out/slm --model  a model that answers: `slm-jax infer a.wav --model out/slm`
    slm-jax export runs/slm out/lora --peft  LoRA of the language model, as PEFT has it
    slm-jax export runs/slm out/llm --merged the language model with LoRA in its weights: a foundation

trainable.safetensors holds all that was trained, under its paths, and nothing frozen; card.json, and the file's own
header, name the foundations that it belongs to, with their fingerprints. Where nothing but the language model was
trained, OUT is a T5 that `T5ForConditionalGeneration.from_pretrained` loads, merged with what stayed frozen of it,
in float32, with its tokenizer. With --model OUT is a model's directory of one checkpoint without the optimizer, in
bfloat16: for MODEL wherever one is asked for, and for a further training to begin at. Its card calls public foundations
by their names, so that another machine finds or imports them. With --peft OUT is what `PeftModel.from_pretrained` of
PEFT puts onto the model of transformers that the language model was imported from. With --merged it is a language model
for LLM or MODEL, without LoRA: the updated weights in float32, the others as they were. OUT is there whole or not at
all.
"""

import argparse
import functools
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, paths

_PART = 'llm/'
# What else of a language model's card holds of the same one merged.
_OF_A_VOCABULARY = (
    'licence', 'vocabulary', 'extra_ids', 'added_tokens', 'swapped', 'chat_template', 'languages', 'added_languages',
)  # fmt: skip


def export(model_dir: str, out: str, step: int | None = None, form: str = '') -> list[str]:
    """Exports a checkpoint.

    Args:
        model_dir: of a training.
        out: directory that is made, and is not there yet.
        step: of the checkpoint; None: the newest.
        form: 'model', 'peft' or 'merged': what `out` becomes, see above.

    Returns:
        Names of the files and folders in it.

    Raises:
        ValueError: no training, no such checkpoint, foundations that have changed, or a model that transformers does
            not have; names it and the remedy.
        FileExistsError: something is at `out`.
    """
    from slm_jax import foundations
    from slm_jax.data import seen
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
        if form == 'model':
            card = {**_portable(card), 'name': path.name}
            card['evaluations'] = foundations.card(directory).get('evaluations') or {}
            checkpoints.write_for_inference(temporary, trained, card, 'bfloat16')
            if (texts := seen.read(directory)) is not None:
                seen.write(temporary, texts)
        elif form == 'peft':
            _write_peft(temporary, directory, leaves, card)
        elif form == 'merged':
            card = _write_merged(temporary, path, directory, leaves, card)
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
    from slm_jax.exporters import mbart as mbart_exporter
    from slm_jax.exporters import t5 as t5_exporter
    from slm_jax.importers import mbart as importers_mbart
    from slm_jax.importers import t5 as importers_t5
    from slm_jax.inference import model
    from slm_jax.llms import mbart, t5

    model.configure(card, [], [])
    llm = getattr(model.configured_system(), 'llm', None)
    vocabulary = foundations.find(vocabularies.names()['llm'])
    if isinstance(llm, t5.T5):
        params = _llm(directory, leaves, card, importers_t5.shapes(llm.config))
        return t5_exporter.write(out, llm.config, params, vocabulary)
    if isinstance(llm, mbart.MBart):
        params = _llm(directory, leaves, card, importers_mbart.shapes(llm.config))
        return mbart_exporter.write(out, llm.config, params, vocabulary)
    raise ExportError(
        f'{directory}: its language model is a {type(llm).__name__}; only a T5 or an mBART can be exported.'
    )


def _llm(
    directory: pathlib.Path, leaves: Mapping[str, Any], card: Mapping[str, Any], shapes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The language model's parameters by path: what trained of it, and the others from its foundation.

    Args:
        directory, leaves, card: of the training; all that trained.
        shapes: and types of the parameters; None: as the foundation has them.
    """
    from slm_jax import foundations
    from slm_jax.training import checkpoints, origins

    own = {path.removeprefix(_PART): leaf for path, leaf in leaves.items() if path.startswith(_PART)}
    entry = card['foundations'].get('llm')
    if entry is None:
        return own
    (found,) = origins.find({'llm': entry['name']})
    wanted = found.stored if shapes is None else {_PART + path: leaf for path, leaf in shapes.items()}
    missing = {path: leaf for path, leaf in wanted.items() if path not in leaves}
    if missing:
        checkpoints.check_foundations(directory, {'llm': entry}, {'llm': found.describe()})
    read = foundations.flatten(origins.load([found], foundations.unflatten(missing)))
    return own | {path.removeprefix(_PART): leaf for path, leaf in read.items()}


def _lora(directory: pathlib.Path, leaves: Mapping[str, Any], card: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The system, and its LoRA of the language model by path."""
    from slm_jax.adapters import lora
    from slm_jax.exporters import ExportError
    from slm_jax.inference import model

    start = f'{lora.PART}/{_PART}'
    found = {path.removeprefix(start): leaf for path, leaf in leaves.items() if path.startswith(start)}
    if not found:
        raise ExportError(
            f'{directory} trained no LoRA of its language model, which --peft and --merged want: --gin_file=models/'
            'lora.gin trains one.'
        )
    model.configure(card, [], [])
    return model.configured_system(), found


def _write_peft(out: pathlib.Path, directory: pathlib.Path, leaves: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    from slm_jax.exporters import lora as exporter

    system, found = _lora(directory, leaves, card)
    exporter.write(out, system.llm, system.lora, found)


def _rows(leaf: Any, start: int, stop: int) -> Any:
    return leaf[start:stop]


def _write_merged(
    out: pathlib.Path,
    place: pathlib.Path,
    directory: pathlib.Path,
    leaves: Mapping[str, Any],
    card: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes a foundation that will stand at `place`; returns its card."""
    from slm_jax import foundations
    from slm_jax.data import prompts, vocabularies
    from slm_jax.exporters import lora as exporter
    from slm_jax.importers import decoder_only, mbart, t5
    from slm_jax.llms.mbart import MBart
    from slm_jax.llms.t5 import T5

    system, found = _lora(directory, leaves, card)
    params: dict[str, Any] = _llm(directory, leaves, card, None)
    params |= exporter.merged(system.llm, system.lora, params, found)
    blocks = {
        path: foundations.Blocks(leaf.shape, leaf.dtype, functools.partial(_rows, leaf))
        for path, leaf in params.items()
    }
    vocabulary = foundations.find(vocabularies.names()['llm'])
    old = foundations.card(vocabulary)
    said = {
        'name': place.name,
        'kind': 'llm',
        'source': f'{old.get("source") or old["name"]}, with LoRA of {card["name"]}',
    }
    said |= {key: old[key] for key in _OF_A_VOCABULARY if key in old}
    tree, cfg = foundations.unflatten(blocks), system.llm.config
    if isinstance(system.llm, T5):
        text = t5.model_file(cfg, tree, said['source'], place)
    elif isinstance(system.llm, MBart):
        text = mbart.model_file(cfg, tree, said['source'], place)
    else:
        text = decoder_only.model_file(cfg, tree, prompts.Prompt().chat or '{user}', said['source'], place)
    files = [vocabulary / name for name in (foundations.TOKENIZER, foundations.TOKENIZER_JSON)]
    with tempfile.TemporaryDirectory() as folder:
        model_file = pathlib.Path(folder, foundations.MODEL_FILE)
        model_file.write_text(text, encoding='utf-8')
        files = [model_file, *(file for file in files if file.is_file())]
        return foundations.save(out, foundations.unflatten(params), said, files)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog='slm-jax export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument('model_dir', metavar='MODEL_DIR', help='directory of a training')
    result.add_argument('out', metavar='OUT', help='directory that is made, and is not there yet')
    result.add_argument('--step', type=int, help='of the checkpoint (default: the newest)')
    form = result.add_mutually_exclusive_group()
    for name, help_text in (
        ('model', "OUT is a model's directory, which answers"),
        ('peft', "OUT is the language model's LoRA in PEFT's format"),
        ('merged', 'OUT is a language model, a foundation, with LoRA in its weights'),
    ):
        form.add_argument(f'--{name}', dest='form', action='store_const', const=name, default='', help=help_text)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(argv)
    try:
        files = export(args.model_dir, args.out, args.step, args.form)
    except (ValueError, OSError) as error:
        return cli.fail('export', error)
    print(f'wrote {args.out}: {", ".join(files)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
