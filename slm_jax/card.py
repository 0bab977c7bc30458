"""Shows what a model or foundation is, or how large one is that has not been made.

    slm-jax card runs/slm                                     card of a trained model
    slm-jax card usm_tiny                                     card of a foundation
    slm-jax card --gin_file=models/slm_xxl.gin --mesh data=4,model=8

The last one builds the system that the gin file describes and computes its shapes, without
allocating a single parameter: how many there are in each part, how many of them train, and what
they take on each device of a mesh that need not be there.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, configuration, model_arguments


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax card'
    result.add_argument('model', nargs='?', metavar='MODEL', help='directory, or a foundation')
    result.add_argument('--config', action='store_true', help='show its gin configuration too')
    result.add_argument('--mesh', default='', help='as in data=4,model=8 (default: one device)')
    result.add_argument(
        '--frozen_dtype', help='in which frozen parameters are held (default: FROZEN_DTYPE, else bfloat16)'
    )
    result.add_argument('--json', action='store_true', help='print JSON')
    return result


def sizes(
    system: Any,
    trainable: Sequence[str] | Mapping[str, int],
    mesh: Mapping[str, int] | None = None,
    frozen_dtype: Any = 'bfloat16',
) -> dict[str, Any]:
    """Parameters and bytes of each part of a system, by shapes alone.

    Args:
        system: see `slm_jax.systems.System`.
        trainable: path patterns, as for `slm_jax.train.train`.
        mesh: devices along 'data', 'fsdp' and 'model', which need not exist; None: one device.
        frozen_dtype: of the parameters that do not train; the others keep their own.

    Returns:
        parts {name: {params, trained, bytes, bytes_per_device}}; whole, the same summed up; mesh;
        and notes on axes that the mesh does not divide.
    """
    import jax

    from slm_jax.inference import traces
    from slm_jax.training import loop, origins, partitioning, state

    axes: dict[str, Any] = {'data': 1, 'fsdp': 1, 'model': 1} | dict(mesh or {})
    if wrong := set(axes) - {'data', 'fsdp', 'model'}:
        raise ValueError(f'--mesh: there is no axis {sorted(wrong)[0]!r}; data, fsdp and model are.')
    partitioner = partitioning.Partitioner(**axes)
    notes: set[str] = set()
    boxed = traces.abstract_params(system)
    abstract_mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    shardings = partitioner.shardings(boxed, abstract_mesh, notes)
    placed = origins.place(state.unboxed(boxed), shardings)
    trained, frozen = state.split(placed, trainable)
    held = state.flatten(trained) | state.flatten(origins.hold(frozen, boxed, frozen_dtype))
    trained_paths = state.flatten(trained).keys()
    parts: dict[str, dict[str, int]] = {}
    whole = dict.fromkeys(('params', 'trained', 'bytes', 'bytes_per_device'), 0)
    for path, leaf in state.flatten(placed).items():
        part = parts.setdefault(path.split('/')[0], dict.fromkeys(whole, 0))
        for count in (part, whole):
            count['params'] += leaf.size
            count['trained'] += leaf.size if path in trained_paths else 0
            count['bytes'] += sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(held[path]))
            count['bytes_per_device'] += loop.bytes_per_device(held[path])
    return {'parts': parts, 'whole': whole, 'mesh': axes, 'notes': sorted(notes)}


def size_text(found: Mapping[str, Any], title: str) -> str:
    """The result of `sizes` as a table for the terminal."""
    whole = found['whole']
    devices = 1
    for length in found['mesh'].values():
        devices *= length
    mesh = ', '.join(f'{name} {length}' for name, length in found['mesh'].items())
    rows = [('part', 'parameters', 'share', 'trained', 'bytes', 'a device')]
    for name, part in [*found['parts'].items(), ('whole', whole)]:
        rows.append(
            (
                name,
                f'{part["params"]:,}',
                f'{100 * part["params"] / whole["params"]:.2f}%',
                f'{part["trained"]:,}',
                byte_text(part['bytes']),
                byte_text(part['bytes_per_device']),
            )
        )
    share = 100 * whole['trained'] / whole['params']
    lines = [
        title,
        f'mesh: {mesh}: {devices:,} device{"s" if devices > 1 else ""}',
        '',
        *table(rows),
        '',
        f'{whole["trained"]:,} parameters train: {share:.2f}% of the whole.',
        'Parameters only: what trains needs gradients and optimizer as well, all need activations.',
        *(f'note: {note}' for note in found['notes']),
    ]
    return '\n'.join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row):
        others = zip(row[1:], widths[1:], strict=True)
        return '  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in others)])

    return [line(row).rstrip() for row in rows]


def byte_text(count: int) -> str:
    """1536 -> '1.5 kB'; thousands, as disks and devices are sold."""
    value, unit = float(count), 'B'
    for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
        if value < 999.5 or unit == 'TB':
            break
        value /= 1000
    return f'{value:.0f} {unit}' if unit == 'B' else f'{value:.3g} {unit}'


def card_text(card: Mapping[str, Any], config: bool = False) -> str:
    """A card as a person reads it.

    Args:
        card: of a model or a foundation.
        config: whether to show the gin configuration that it holds.
    """
    from slm_jax.evaluation import report

    shown = {k: v for k, v in card.items() if k not in ('config', 'evaluations')}
    lines = [*_lines(shown, 0)]
    for name, entry in (card.get('evaluations') or {}).items():
        lines += ['', f'evaluation {name}, step {entry.get("step")}, {entry.get("created")}']
        lines.append(report.summary(entry))
    if 'config' in card:
        lines += ['', card['config'] if config else 'It holds its gin configuration: --config.']
    return '\n'.join(lines)


def _lines(value: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    width = max((len(str(key)) for key in value), default=0)
    for key, entry in value.items():
        space = '  ' * depth
        if isinstance(entry, Mapping) and entry:
            lines += [f'{space}{key}', *_lines(entry, depth + 1)]
        elif isinstance(entry, list) and any(isinstance(item, (Mapping, list)) for item in entry):
            lines.append(f'{space}{key}')
            for item in entry:
                inner = _lines(item, depth + 2) if isinstance(item, Mapping) else [f'    {item}']
                lines += [f'{space}  -', *inner]
        else:
            lines.append(f'{space}{key!s:<{width}}  {_value(entry)}')
    return lines


def _value(entry: Any) -> str:
    if isinstance(entry, bool) or entry is None:
        return {True: 'yes', False: 'no', None: '–'}[entry]
    if isinstance(entry, int):
        return f'{entry:,}' if abs(entry) >= 10_000 else str(entry)
    if isinstance(entry, float):
        return f'{entry:.4g}'
    if isinstance(entry, (list, tuple)):
        return ', '.join(map(_value, entry)) or '–'
    return str(entry) or '–'


def show(args: argparse.Namespace) -> str:
    """What the command line asks for.

    Raises:
        ValueError: wrong arguments, nothing of that name, or a configuration without a system.
    """
    if args.model and args.gin_file:
        raise ValueError('give MODEL or --gin_file, not both.')
    if args.model:
        from slm_jax import foundations

        card = foundations.card(args.model)
        return json.dumps(card, ensure_ascii=False, indent=2) if args.json else card_text(card, args.config)
    if not args.gin_file:
        raise ValueError('give MODEL (a directory or a foundation), or --gin_file.')
    from slm_jax.inference import model

    configuration.parse_gin(args.gin_file, args.gin_bindings)
    system = model.configured_system()
    mesh = {k: int(v) for k, v in model_arguments.pairs('--mesh', args.mesh.split(',')).items()}
    frozen_dtype = args.frozen_dtype or model.query('%FROZEN_DTYPE') or 'bfloat16'
    found = sizes(system, model.query('%TRAINABLE') or ('.*',), mesh, frozen_dtype)
    if args.json:
        return json.dumps(found, indent=2)
    return size_text(found, f'{", ".join(args.gin_file)}: {type(system).__name__}')


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        print(show(args))
    except BrokenPipeError:
        raise
    except (ValueError, OSError, TypeError) as error:
        return cli.fail('card', error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
