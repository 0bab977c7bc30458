"""Counts the tokens that a training's targets are made of: labels for an adapter that writes them by CTC.

    python -m slm_jax.corpora.token_counts --gin_file=runs/slm_base_ctc.gin --gin_file=own.gin labels.gin

writes a gin file with the macro LABELS, 'TOKEN:COUNT,…' in the order of the tokens, of all targets in the training
split of MIXTURE_OR_TASK_NAME. Give it to the training as a further --gin_file; its model's card then holds them.
What is met a few times is hardly learnt, and costs as much as any other label: with --least 5 it is counted as the two
tokens that BPE merges into it, which spell it in a training with SLM.spellings.
"""

import collections
import os
import sys

from slm_jax import cli, configuration, import_, paths

_GIN = """\
# {labels:,} tokens of {llm}: {tokens:,} in {texts:,} targets of {name}.
# By `python -m slm_jax.corpora.token_counts`.
LABELS = '{text}'
"""


def count(mixture_or_task_name: str | dict[str, float]) -> tuple[collections.Counter[int], int]:
    """How often each token occurs in the training targets, ends left out; and in how many targets.

    Stores that are missing are built first. Examples that cannot be used are left out.
    """
    import numpy as np

    from slm_jax.data import cache, measure, mixtures, preprocessors

    tasks, _ = mixtures.tasks_and_rates(mixture_or_task_name)
    for task in tasks:
        cache.fetch_source(task)
    counts: collections.Counter[int] = collections.Counter()
    texts = 0
    for task, store in zip(tasks, cache.open_stores(tasks, 'train', None, 'skip'), strict=True):
        steps = measure.postcache(task, store.spec)
        silent = {'speech': np.zeros(0, np.int16)} if 'speech' in store.spec else {}
        for index in range(len(store)):
            features = dict(store.features(index), **silent, index=np.int64(index), template_seed=np.int64(0))
            try:
                example = steps(features)
            except preprocessors.BadExampleError:
                continue
            if example is not None and not example.get('error'):
                counts.update(int(token) for token in example['targets'] if token > 1)
                texts += 1
    return counts, texts


def spelt(counts: collections.Counter[int], parts: dict[int, tuple[int, int]], least: int) -> collections.Counter[int]:
    """`counts` in which each token that is met fewer than `least` times has become its parts, if it has any."""
    result = collections.Counter(counts)
    for token, pair in reversed(parts.items()):  # parts come after what is merged of them
        if 0 < result[token] < least:
            number = result.pop(token)
            result.update(dict.fromkeys(pair, number) if pair[0] != pair[1] else {pair[0]: 2 * number})
    return +result


def write(counts: collections.Counter[int], texts: int, name: str, llm: str, out: str | os.PathLike) -> None:
    """Writes the gin file, whole or not at all.

    Raises:
        ValueError: there is nothing to write.
    """
    if not counts:
        raise ValueError(f'{name}: no target of its training split has a token.')
    text = ','.join(f'{token}:{number}' for token, number in sorted(counts.items()))
    content = _GIN.format(labels=len(counts), llm=llm, tokens=counts.total(), texts=texts, name=name, text=text)
    paths.write(paths.path(out), content)


def main(argv: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    cli.quiet_libraries()
    parser = configuration.parser(__doc__)
    parser.prog = 'python -m slm_jax.corpora.token_counts'
    parser.add_argument('out', metavar='OUT', help='gin file that is written')
    parser.add_argument('--least', type=int, default=1, metavar='N', help='met fewer times, a token becomes its parts')
    args = parser.parse_args(argv)
    try:
        import slm_jax.tasks  # isort: skip  first: it loads TensorFlow quietly  # noqa: F401

        from slm_jax import prepare
        from slm_jax.data import vocabularies

        read = {'%MIXTURE_OR_TASK_NAME': None, 'slm_jax.data.vocabularies.names.llm': None}
        configuration.parse_gin(args.gin_file, args.gin_bindings, only=read)
        names = prepare.configured()
        if not names:
            raise ValueError('nothing to count: give a --gin_file that sets MIXTURE_OR_TASK_NAME.')
        import_.ensure(vocabularies.names()['llm'])
        counts, texts = count(names[0])
        counts = spelt(counts, getattr(vocabularies.of('llm'), 'parts', {}), args.least)
        write(counts, texts, repr(names[0]), vocabularies.names()['llm'], args.out)
    except (ValueError, RuntimeError, OSError, AssertionError) as error:
        return cli.fail('token_counts', error)
    print(f'wrote {args.out}: {len(counts):,} tokens, {counts.total():,} in {texts:,} targets')
    return 0


if __name__ == '__main__':
    sys.exit(main())
