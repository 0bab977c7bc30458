"""Makes a foundation: `slm-jax pretrain t5_tiny OUT --tokenizer DIR --gin.TEXT_CORPORA=…`.

Trains the stages of a recipe one after another in OUT/stages, each a training like any other (`slm_jax.train`), the
next from what the last one left; then writes OUT/NAME, a foundation's directory in bfloat16. The same command goes
on where it was stopped.

    slm-jax pretrain comsl_tiny OUT --gin.TEXT_MODEL=out/mbart_tiny --gin.TEXT_MANIFEST=pairs.jsonl

is a whole system and no foundation: its text model is fine-tuned, then its speech part, then all of it, and
OUT/stages/joint is the model.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from slm_jax import cli, configuration, paths


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stages are files in gin/pretrain/NAME.

    `part` is the entry of the last stage's parameters that is kept, and what each stage hands to the next. '': the last
    stage is the model itself, and each finds the directories of those before it as macros, TRANSLATION of
    `translation`.
    """

    part: str
    stages: tuple[str, ...]
    data: str = ''
    licence: str = ''


RECIPES = {
    'usm_tiny': Recipe(
        part='speech_encoder',
        stages=('best_rq', 'ctc', 'recordings', 'altered', 'spliced_words', 'spliced_sentences'),
        data="the voice prompts' training split (CC BY-SA 3.0, CC BY 3.0), SPEECH_MANIFEST, RECORDINGS and "
        'SPLICED_MANIFEST',
        licence='CC BY-SA 4.0',
    ),
    't5_tiny': Recipe(
        part='llm',
        stages=('text', 'refine', 'translation', 'messages'),
        data='the text corpora in TEXT_CORPORA',
        licence='CC BY-SA 4.0',
    ),
    'mbart_tiny': Recipe(
        part='llm',
        stages=('translation',),
        data='the texts and translations in TEXT_MANIFEST',
        licence="that of TEXT_MANIFEST's texts",
    ),
    'comsl': Recipe(part='', stages=('translation', 'speech', 'joint')),
    'comsl_tiny': Recipe(part='', stages=('translation', 'speech', 'joint')),
}


def pretrain(
    name: str, out: str, tokenizer: str | None, gin_files: Sequence[str], bindings: Sequence[str]
) -> pathlib.Path:
    """Trains a recipe and writes its foundation, where it makes one.

    Args:
        name: of `RECIPES`.
        out: directory for the stages and the foundation.
        tokenizer: directory with `tokenizer.model` and a `card.json`, as slm_jax.corpora.tokenizers writes them; None
            for a recipe that makes no foundation.
        gin_files, bindings: parsed after each stage's own.

    Returns:
        The foundation's directory, or the model's.

    Raises:
        ValueError: the tokenizer is missing, or nothing reads one; or see `train`.
    """
    from slm_jax import foundations, train
    from slm_jax.training import checkpoints

    recipe, folder = RECIPES[name], paths.path(out).absolute()
    if bool(recipe.part) != bool(tokenizer):
        what = 'give the directory of one, as slm_jax.corpora.tokenizers writes it' if recipe.part else 'leave it out'
        raise ValueError(f'--tokenizer: {name} has {"a new" if recipe.part else "that of its text model"}; {what}.')
    said, tokenizer_dir = {}, paths.path(tokenizer or '')
    if tokenizer:
        said = json.loads((tokenizer_dir / foundations.CARD).read_text(encoding='utf-8'))
    directories = {stage: folder / 'stages' / stage for stage in recipe.stages}

    def configure(stage: str) -> None:
        earlier = [str(directories[each]) for each in recipe.stages[: recipe.stages.index(stage)]]
        if recipe.part:
            given = [
                f"slm_jax.data.vocabularies.names.{recipe.part}='{tokenizer}'",
                f'FOUNDATIONS={dict(zip([recipe.part], earlier[-1:], strict=False))!r}',
            ]
        else:
            given = [f"{each.upper()}='{path}'" for each, path in zip(recipe.stages, earlier, strict=False)]
        own = f"MODEL_DIR='{directories[stage]}'"
        configuration.parse_gin([f'pretrain/{name}/{stage}.gin', *gin_files], [*given, own, *bindings])

    for stage in recipe.stages:  # what is wrong with the last one is said before the first one is trained
        configure(stage)
    for stage in recipe.stages:
        configure(stage)
        train.ensure_foundations()
        result = configuration.configured(train.train)()
        if result['terminated']:
            raise SystemExit(train.EXIT_TERMINATED)
    model_dir = directories[recipe.stages[-1]]
    if not recipe.part:
        return model_dir
    params, card = checkpoints.load_for_inference(model_dir)
    foundations.save(
        folder / name,
        params[recipe.part],
        {
            'name': name,
            'kind': recipe.part,
            'data': recipe.data,
            'licence': recipe.licence,
            **{key: said[key] for key in ('extra_ids', 'swapped', 'languages') if key in said},
            'recipe': card['config'].replace(f'{folder}/', 'out/'),
            'scores': card['evaluation'],
            'versions': card['versions'],
        },
        [tokenizer_dir / foundations.TOKENIZER],
        dtype='bfloat16',
    )
    return folder / name


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = configuration.parser(__doc__)
    parser.prog = 'slm-jax pretrain'
    parser.add_argument('name', choices=sorted(RECIPES))
    parser.add_argument('out')
    parser.add_argument('--tokenizer', metavar='DIR', help='as slm_jax.corpora.tokenizers writes them')
    args = parser.parse_args(argv)
    try:
        path = pretrain(args.name, args.out, args.tokenizer, args.gin_file, args.gin_bindings)
    except ArithmeticError as error:  # of `train`: a loss that is not finite
        return cli.fail('pretrain', error, 1)
    except (ValueError, OSError) as error:
        return cli.fail('pretrain', error)
    print(f'wrote {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
