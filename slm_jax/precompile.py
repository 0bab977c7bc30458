"""Compiles a model's training, evaluation and decoding for devices that need not be there, and says whether they fit.

    slm-jax precompile --gin_file=models/slm_xxl.gin --topology=v5p:2x2x4 --mesh fsdp=4,model=4
    slm-jax precompile --gin_file=models/slm_xxl.gin --topology=v6e:4x4 --mesh auto --gin.FROZEN_DTYPE=int8
    slm-jax precompile --gin_file=models/slm_tiny.gin --topology=gpu:h100x1

The steps are those of `slm-jax train`, from the same gin files; neither data nor foundations are read, and no array is
made. A model file is enough: what runs/train.gin says comes before it. A TPU's numbers are those of its own compiler
(libtpu, which needs no TPU). GPUs are simulated on this CPU: the arrays are exact, temporaries are what XLA's CPU
compiler takes, which fuses less and computes bfloat16 in float32: mostly too much, and collectives may be others.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import card, cli, configuration, model_arguments

EXIT_TOO_LARGE = 3
_TRAIN = 'slm_jax.train.train.'
_READ = {  # of the configuration, and what is put for a macro that has no value
    '%MODEL': None,
    '%TRAIN_STEPS': 1_000_000,  # a schedule's length changes no shape
    '%TASK_FEATURE_LENGTHS': None,
    '%BATCH_SECONDS': None,
    '%ENCODER_SECONDS': None,
    **{
        f'{_TRAIN}{name}': None
        for name in ('trainable', 'optimizer', 'partitioner', 'frozen_dtype', 'encoded', 'decode')
    },
}
_ESTIMATES = {
    'at best, an estimate: products, seconds': lambda line: f'{line.compute:.2g}',
    '  memory, beside them': lambda line: f'{line.memory:.2g}',
    '  links, after them': lambda line: f'{line.network:.2g}',
    '  in all': lambda line: f'{line.seconds:.2g}',
    '  share of the peak rate (MFU)': lambda line: f'{line.mfu:.0%}',
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax precompile'
    result.epilog = (
        f'Exit status: 0 all steps fit, {EXIT_TOO_LARGE} one does not (what to change is said), 2 wrong arguments.'
    )
    result.add_argument('--topology', required=True, help='as in v5p:2x2x4, v6e:4x4, gpu:h100x8, gpu:80GBx8')
    result.add_argument(
        '--mesh', default='', help="as in data=1,fsdp=4,model=8, or 'auto' (default: Partitioner of the gin files)"
    )
    result.add_argument(
        '--steps', help='which of them (default: train,evaluate,decode; without decode if none answers)'
    )
    batch = result.add_argument_group('batch (default: the longest clip that TASK_FEATURE_LENGTHS lets through)')
    batch.add_argument('--rows', type=int, help='of all devices together (default: as many as BATCH_SECONDS holds)')
    batch.add_argument('--seconds', type=float, help='of audio in a row')
    batch.add_argument('--inputs', type=int, help='tokens of the instruction')
    batch.add_argument('--targets', type=int, help='tokens of the answer')
    result.add_argument(
        '--smallest', action=argparse.BooleanOptionalAction, default=True,
        help='look for the smallest slice of this chip that the first step fits on (some more compilations)',
    )  # fmt: skip
    result.add_argument(
        '--json', metavar='FILE', help='write everything there too; - is standard output, without the table'
    )
    return result


def configured(gin_files: Sequence[str], bindings: Sequence[str]) -> tuple[Any, Any]:
    """(what is to be compiled, the batch that gin asks for), of a model file or a run file.

    Raises:
        ValueError: the configuration does not parse, or something of it that is needed has no value.
    """
    from slm_jax import decoding
    from slm_jax.data import loader
    from slm_jax.inference import model
    from slm_jax.training import precompiled

    configuration.parse_gin(['runs/train.gin', *gin_files], bindings, only=_READ)
    training = precompiled.Training(
        system=model.configured_system(),
        trainable=model.query(f'{_TRAIN}trainable'),
        optimizer=model.query(f'{_TRAIN}optimizer'),
        partitioner=model.query(f'{_TRAIN}partitioner'),
        frozen_dtype=model.query(f'{_TRAIN}frozen_dtype') or 'bfloat16',
        decode=model.query(f'{_TRAIN}decode') or configuration.configured(decoding.DecodeConfig)(),
        encoded=model.query(f'{_TRAIN}encoded'),
    )
    lengths = {**loader.DEFAULT_LENGTHS, **(model.query('%TASK_FEATURE_LENGTHS') or {})}
    longest = getattr(training.system, 'max_seconds', None) or float('inf')
    seconds = min(lengths['speech'] / 16_000, longest)
    a_row = max(seconds, model.query('%ENCODER_SECONDS') or 0.0)
    rows = max(1, int(model.query('%BATCH_SECONDS') // a_row))
    return training, precompiled.Size(rows, seconds, lengths['inputs'], lengths['targets'])


def table(reports: Sequence[Any]) -> list[str]:
    """Lines for the terminal: bytes a device, and what is moved in a step."""
    first = reports[0]
    names = {
        'frozen': 'frozen parameters', 'trained': 'trained parameters', 'optimizer': 'optimizer', 'batch': 'batch',
        'temporary': 'activations and other temporaries', 'outputs': 'outputs', 'code': 'code', 'total': 'in all',
    }  # fmt: skip
    shown = [report.as_json() for report in reports]

    def size(count: float | None) -> str:
        return '?' if count is None else card.byte_text(round(count))

    rows = [('bytes on each device', *(report.step for report in reports))]
    rows += [(name, *(size(each['bytes'][key]) for each in shown)) for key, name in names.items()]
    rows.append(
        (f'of {size(first.usable)} that can be had', *('fits' if each.fits else 'TOO MUCH' for each in reports))
    )
    kinds = sorted({kind for each in shown for kind in each['collectives'] or ()})
    moved = [('a step on each device', *(report.step for report in reports))]
    moved.append(('FLOPs of matrix products', *(f'{report.flops:.3g}' for report in reports)))
    for kind in kinds:
        counts = [None if each['collectives'] is None else each['collectives'].get(kind, 0) for each in shown]
        moved.append((kind, *map(size, counts)))
    moved.append(('sent over its links', *(size(each['sent_bytes']) for each in shown)))
    for name, of in _ESTIMATES.items():
        moved.append((name, *(of(report.roofline) if report.roofline else '?' for report in reports)))
    moved.append(('seconds to compile', *(f'{report.compile_seconds:.0f}' for report in reports)))
    lines = [*card.table(rows), '', *card.table(moved), '']
    for report in reports:
        for loop in report.moved.open_loops if report.moved else ():
            times = (
                f'at most {loop.most} times: so many are counted'
                if loop.most
                else 'who knows how often: once is counted'
            )
            lines.append(f'note: {report.step}: the loop {loop.op_name} runs {times}')
    lines += [f'note: {note}' for note in dict.fromkeys(note for report in reports for note in report.notes)]
    return lines


def too_large(report: Any, training: Any, small: Any) -> str:
    """That a step does not fit, and what to change, in terms of the gin files."""
    size = report.size
    needed = 'an amount that XLA does not tell' if report.total is None else card.byte_text(report.total)
    remedies = []
    if str(training.frozen_dtype) != 'int8' and report.arguments['frozen'] > 0.2 * report.usable:
        remedies.append('--gin.FROZEN_DTYPE=int8 (half of the frozen bytes)')
    if small is not None:
        remedies.append(f'--topology={small.topology.name} --mesh {_given(small.mesh)}')
    remedies.append('more of model or fsdp in --mesh (Partitioner.model, Partitioner.fsdp), or --mesh auto')
    if report.temporary is None or report.temporary > 0.2 * report.usable:
        remedies.append(f'less than {size.rows * size.seconds:g} s in a batch (BATCH_SECONDS, --rows)')
        remedies.append(f"shorter clips than {size.seconds:g} s (TASK_FEATURE_LENGTHS['speech'], --seconds)")
        if report.step == 'train':
            remedies.append("remat (T5Config.remat_policy = 'full')")
    return (
        f'{report.step} does not fit on {report.topology.name}: it needs {needed} of each device, which has '
        f'{card.byte_text(round(report.usable))}. What helps: {"; ".join(remedies)}.'
    )


def run(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
        ValueError: wrong arguments, or a configuration that is no training.
    """
    from slm_jax.training import topologies

    started = time.perf_counter()
    topology = topologies.parse(args.topology)
    topologies.prepare(topology)
    from tqdm import tqdm

    from slm_jax.training import precompiled

    steps = [name.strip() for name in (args.steps or ','.join(precompiled.STEPS)).split(',')]
    if wrong := [name for name in steps if name not in precompiled.STEPS]:
        raise ValueError(f'--steps: there is no step {wrong[0]!r}; there are {", ".join(precompiled.STEPS)}.')
    if not args.gin_file:
        raise ValueError('give --gin_file, as in --gin_file=models/slm_xxl.gin.')
    training, size = configured(args.gin_file, args.gin_bindings)
    if not args.steps and not getattr(training.system, 'answers', True):
        steps.remove('decode')
    size = precompiled.Size(*(
        given if given is not None else default
        for given, default in zip((args.rows, args.seconds, args.inputs, args.targets), vars(size).values())
    ))  # fmt: skip
    for name, value in vars(size).items():
        if value <= 0:
            raise ValueError(f'--{name} is {value}; it must be above 0.')

    def progress(what: str):
        return lambda items: tqdm(items, desc=what, disable=None)

    reports, tried = [], 0
    mesh = _mesh(args.mesh, training.partitioner)
    if mesh is None:
        found, tried = precompiled.best(training, topology, size, steps[0], progress('layouts'))
        reports, mesh = [found], dict(found.mesh)
    for step in progress('steps')(steps[len(reports) :]):
        reports += precompiled.compiled(training, topology, mesh, size, [step])
    small = None
    if args.smallest:
        small = precompiled.smallest(training, reports[0], size, progress('smallest slice'))
    result = {
        'schema': 1,
        'gin_files': args.gin_file,
        'gin_bindings': args.gin_bindings,
        'versions': _versions(topology),
        'steps': [report.as_json() for report in reports],
        'fits': all(report.fits for report in reports),
        'layouts_compiled': tried,
        'smallest': small and {'topology': small.topology.name, 'mesh': dict(small.mesh), 'step': small.step},
        'seconds': round(time.perf_counter() - started, 1),
    }
    written = json.dumps(result, indent=2)
    if args.json == '-':
        print(written)
    else:
        print('\n'.join([*_head(args, training, reports[0], tried), '', *table(reports), *_tail(args, small)]))
        if args.json:
            pathlib.Path(args.json).write_text(written + '\n', encoding='utf-8')
    failed = [too_large(report, training, small) for report in reports if not report.fits]
    print(*(f'slm-jax precompile: {line}' for line in failed), sep='\n', end='\n' * bool(failed), file=sys.stderr)
    return EXIT_TOO_LARGE if failed else 0


def _head(args: argparse.Namespace, training: Any, first: Any, tried: int) -> list[str]:
    """What was compiled, and for what."""
    topology, size = first.topology, first.size
    kind = 'GPUs, simulated on this CPU: see --help' if topology.simulated else f'{topology.chip.name} chips'
    if topology.chip and topology.chip.devices > 1:
        kind += f', {topology.chip.devices} devices each'
    mesh = ', '.join(f'{axis} {length}' for axis, length in first.mesh.items())
    lines = [
        f'{", ".join(args.gin_file)}: {type(training.system).__name__}, frozen parameters in {training.frozen_dtype}',
        f'{topology.name}: {topology.size} devices ({kind}); mesh: {mesh}',
        f'batch: {size.rows} rows of {size.seconds:g} s, {size.inputs} + {size.targets} tokens; answers of up to '
        f'{training.decode.max_decode_length} tokens ({training.decode.method})',
    ]
    chip = topology.chip
    if chip and chip.libtpu:
        kept, memory = (card.byte_text(round(count)) for count in (chip.memory - chip.usable, chip.memory))
        lines.append(f'memory: {memory} a device, of which the compiler keeps {kept}')
    else:
        lines.append('memory: 8% is taken to be kept back by the driver, JAX and what is in pieces')
    if tried:
        lines.append(f'--mesh auto: {tried} layouts were compiled, those that fit and send least by an estimate')
    return lines


def _tail(args: argparse.Namespace, small: Any) -> list[str]:
    if not args.smallest:
        return []
    if small is None:
        return ['smallest slice: none of the listed ones']
    return [f'smallest slice that the {small.step} step fits on: {small.topology.name}, --mesh {_given(small.mesh)}']


def _given(mesh: Mapping[str, int]) -> str:
    return ','.join(f'{axis}={length}' for axis, length in mesh.items())


def _versions(topology: Any) -> dict[str, str]:
    from slm_jax.training import checkpoints

    return checkpoints.versions() | ({} if topology.simulated else {'libtpu': importlib.metadata.version('libtpu')})


def _mesh(given: str, partitioner: Any) -> dict[str, int] | None:
    """Sizes of the axes; None: they are to be proposed."""
    if given == 'auto':
        return None
    if not given:
        return {axis: getattr(partitioner, axis) for axis in ('data', 'fsdp', 'model')}
    try:
        pairs = {axis: int(size) for axis, size in model_arguments.pairs('--mesh', given.split(',')).items()}
    except ValueError as error:
        raise ValueError(f'--mesh {given}: write data=1,fsdp=4,model=8, or auto.') from error
    if wrong := set(pairs) - {'data', 'fsdp', 'model'}:
        raise ValueError(f'--mesh {given}: there is no axis {sorted(wrong)[0]!r}; data, fsdp and model are.')
    return {'data': 1, 'fsdp': 1, 'model': 1} | pairs


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return run(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, TypeError) as error:
        return cli.fail('precompile', error)


if __name__ == '__main__':
    sys.exit(main())
