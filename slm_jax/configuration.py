"""Gin files and the command line, the same for every program.

Programs take `--gin_file=FILE` (any number of times) and `--gin.NAME=VALUE`, as T5X's do. A gin file is looked for in
the working directory, then among the package's own (`models/slm_tiny.gin` and `gin/models/slm_tiny.gin` both name
the same file, from a checkout, an editable install or a wheel), then among the foundations that were imported by name
(`whisper_base/model.gin`); the files it includes are looked for likewise. A name that means nothing stops the program
at once, with the nearest name that does.
"""

import argparse
import difflib
import importlib.util
import inspect
import io
import os
import pathlib
import pkgutil
import re
import sys
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, paths

# Read by TensorFlow, XLA and gRPC when they are first imported, so set before anything else is.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')

_TEXT = re.compile(r'[A-Za-z/~._][\w/~.,:+\-]*')  # a value that may be given without quotes
_IMPORT = re.compile(r'^\s*(?:from\s+\S+\s+)?import\s+(\S+)(?:\s+as\s+(\w+))?', re.MULTILINE)


class ConfigurationError(ValueError):
    """A gin file or a binding that cannot mean what was intended; the text names it and the nearest valid name."""


class _Parser(argparse.ArgumentParser):
    """Collects `--gin.NAME=VALUE` into `gin_bindings`, in order, which argparse alone cannot."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        bindings = [arg.removeprefix('--gin.') for arg in args if arg.startswith('--gin.')]
        for binding in bindings:
            if '=' not in binding:
                self.error(f'--gin.{binding}: write --gin.NAME=VALUE')
        parsed, rest = super().parse_known_args([arg for arg in args if not arg.startswith('--gin.')], namespace)
        parsed.gin_bindings = bindings
        return parsed, rest


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with `--gin_file` (`.gin_file`, a list) and `--gin.NAME=VALUE` (`.gin_bindings`, a list).

    Also turns other people's log lines down: what the terminal shows is ours.
    """
    cli.quiet_libraries()
    result = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        '--gin_file', action='append', default=[], metavar='FILE', help='gin file; may be given more than once'
    )
    result.add_argument_group(
        'configuration', '--gin.NAME=VALUE sets a macro (--gin.TRAIN_STEPS=100) or a parameter (--gin.SLM.dtype=None)'
    )
    return result


def search_path() -> list[pathlib.Path]:
    """Directories in which gin files are looked for: the working one, ours, that of foundations imported by name."""
    package = pathlib.Path(__file__).parent
    roots = [package, package.parent]  # wheel; checkout or editable install
    # In site-packages the second is the gin library, which has an __init__.py where our directory has none.
    own = [root / 'gin' for root in roots if (root / 'gin/models').is_dir()]
    return [pathlib.Path(), *own, *[path.parent for path in own], paths.foundations()]


def find_gin_file(name: str) -> pathlib.Path:
    """Where a gin file is.

    Raises:
        ConfigurationError: nowhere on the search path; names the nearest file that is.
    """
    if paths.is_url(name):
        if (url := paths.path(name)).is_file():
            return url
        raise ConfigurationError(f'gin file {name!r} is not there.')
    for directory in search_path():
        if (directory / name).is_file():
            return directory / name
    from slm_jax.foundations import named

    if (foundation := name.partition('/')[0]) in named.FOUNDATIONS:
        raise ConfigurationError(f'gin file {name!r}: {named.not_imported(foundation)}')
    there = {str(file.relative_to(path)) for path in search_path()[1:2] for file in path.rglob('*.gin')}
    raise ConfigurationError(
        f'gin file {name!r} is neither here nor in {[str(path) for path in search_path()[1:]]}'
        + _nearest(name, there | {f'gin/{file}' for file in there})
    )


def _is_url(name: str) -> bool:
    return paths.is_url(name) and paths.path(name).is_file()


def _open_url(name: str) -> io.StringIO:
    return io.StringIO(paths.path(name).read_text())


def parse_gin(gin_files: Sequence[str], bindings: Sequence[str] = (), only: Mapping[str, Any] | None = None) -> None:
    """Parses gin files, then command-line bindings (`NAME=VALUE`), and checks the whole.

    Starts from an empty configuration. A binding may set a macro or the parameter of anything that lives in a module
    which one of the files imports, whether a file mentions it or not. Text needs no inner quotes.

    Args:
        gin_files, bindings: as the command line has them.
        only: what the program reads of the configuration ('%MODEL', 'slm_jax.train.train.optimizer'), if not all. A
            macro that nothing of it reads needs no value then; one that has a value here has it unless it is given.

    Raises:
        ConfigurationError: a file, module, function, parameter or macro that does not exist, a macro given in
            `bindings` that nothing reads, or a value that its parameter does not take (`bindings.misfits`).
    """
    import gin
    from gin import config as gin_config
    from slm_jax import bindings as gin_bindings

    gin.clear_config()
    gin_config._IMPORTS.clear()
    gin_config._FILE_READERS[:] = [(open, os.path.isfile), (_open_url, _is_url)]  # gin's own log an error for each miss
    for path in search_path():
        if str(path) not in gin_config._LOCATION_PREFIXES:
            gin.add_config_file_search_path(str(path))
    try:
        for file in gin_files:
            _checked(gin.parse_config_file, str(find_gin_file(file)))
        in_files = _macros()
        for binding in bindings:
            _bind(binding)
        if only is not None:
            gin_bindings.leave_out(only)
        _check_macros([binding.partition('=')[0].strip() for binding in bindings], in_files)
        for misfit in gin_bindings.misfits():
            raise ConfigurationError(gin_bindings.explained(misfit))
        gin.finalize()  # which checks, and locks: then no module with configurables could be imported later
        gin_config._set_config_is_locked(False)
    except ConfigurationError:
        gin.clear_config()
        raise


def configured(function):
    """The function or class with its gin bindings applied, whether or not a gin file mentions it.

    Raises:
        ConfigurationError: a parameter has no value.
    """
    import gin
    from slm_jax import bindings

    try:
        result = gin.get_configurable(function)
    except ValueError:
        result = gin.external_configurable(function)
    if names := list(bindings.unbound(f'{function.__module__}.{function.__name__}')):
        given = ' '.join(f'--gin.{name}=VALUE' for name in names)
        raise ConfigurationError(f'{", ".join(names)}: no value. Name a --gin_file that binds them, or give {given}.')
    return result


def operative_config() -> str:
    """All that is bound, as gin text that `gin.parse_config` takes: for cards."""
    import gin

    return gin.config_str()


def _nearest(name: str, candidates) -> str:
    near = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.4)
    return f'. Did you mean {near[0]!r}?' if near else f'. There are: {", ".join(sorted(candidates)) or "none"}.'


def _bind(binding: str) -> None:
    """Parses one command-line binding, as if it stood at the end of the gin files."""
    import gin
    from gin import config as gin_config

    name, _, value = (part.strip() for part in binding.partition('='))
    try:
        with gin_config._parse_scope():
            gin_config.parse_value(value)
    except (SyntaxError, ValueError, tokenize.TokenError):
        if value.startswith(('@', '%')) or not _TEXT.fullmatch(value):
            if not value.startswith(('@', '%')):
                raise ConfigurationError(
                    f'--gin.{binding}: {value!r} is not a gin value. Quote text as \'"…"\'.'
                ) from None
        else:
            value = repr(value)
    # A short name (`SLM.dtype`) is looked up among what the files mention, then in the modules that they import.
    scope, _, selector = name.rpartition('/')
    selector, _, parameter = selector.rpartition('.')
    imports = {s.bound_name(): s for s in gin_config._IMPORTS if not s.module.startswith('__gin__')}
    header = ['from __gin__ import dynamic_registration', *sorted({s.format() for s in imports.values()})]
    if not selector:
        text = [*(header if '@' in value else []), f'{name} = {value}']
        return _checked(gin.parse_config, text, source=f'--gin.{binding}')
    # `train.max_to_keep` means the function of a module that bears its name, whatever else is called `train`.
    module = imports[selector].module if selector in imports else ''
    own = module.rpartition('.')[2]
    if callable(getattr(sys.modules.get(module), own, None)):
        selector = f'{selector}.{own}'
    if selector.split('.')[0] not in imports or selector in imports:
        matches = gin_config._REGISTRY.matching_selectors(selector)
        if (
            len(matches) > 1
            and len(own_names := gin_config._REGISTRY.matching_selectors(f'{selector}.{selector}')) == 1
        ):
            selector, matches = own_names[0], own_names
        if len(matches) > 1:
            raise ConfigurationError(f'--gin.{binding}: {selector!r} may be {", ".join(sorted(matches))}; write which.')
        owners = [
            bound
            for bound, statement in imports.items()
            if callable(getattr(sys.modules[statement.module], selector.split('.')[0], None))
        ]
        if matches:
            header = []
        elif len(owners) == 1:
            selector = f'{owners[0]}.{selector}'
        else:
            names = {n for s in imports.values() for n in vars(sys.modules[s.module]) if not n.startswith('_')}
            raise ConfigurationError(f'--gin.{binding}: nothing is called {selector!r}' + _nearest(selector, names))
    prefix = f'{scope}/' if scope else ''
    _checked(gin.parse_config, [*header, f'{prefix}{selector}.{parameter} = {value}'], source=f'--gin.{binding}')


def _checked(parse, text: str | list[str], source: str = '') -> None:
    """`parse(text)`; gin's errors come out as ours, with the nearest name."""
    try:
        parse(text)
    except (
        ValueError, NameError, AttributeError, ImportError, SyntaxError, tokenize.TokenError, TypeError, OSError
    ) as error:  # fmt: skip
        if isinstance(error, ConfigurationError):
            raise
        message = str(error).strip()
        where = f'{source}: ' if source else ''
        hint = _hint(message).replace('. ', '\n  ', 1)
        raise ConfigurationError(where + message + hint) from error


def _hint(message: str) -> str:
    from gin import config as gin_config

    def text_of_file():
        location = re.search(r'In file "(.+?)", line', message)
        return paths.path(location[1]).read_text(encoding='utf-8') if location else ''

    if found := re.search(r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'", message):
        for selector in (found[1], found[1].rpartition('.')[2]):
            matches = gin_config._REGISTRY.matching_selectors(selector)
            if len(matches) == 1:
                wrapped = gin_config._REGISTRY[matches[0]].wrapped
                return _nearest(found[2], inspect.signature(wrapped).parameters)
    elif found := re.search(r"'(.+?)' was not provided by an import statement", message):
        bound = {alias or module.rpartition('.')[2] for module, alias in _IMPORT.findall(text_of_file())}
        return _nearest(found[1], bound - {'dynamic_registration'})
    elif found := re.search(r"<module '(.+?)'.*> has no attribute (\w+)", message):
        return _nearest(found[2], {name for name in vars(sys.modules[found[1]]) if not name.startswith('_')})
    elif found := re.search(r"No module named '(.+?)'", message):
        parent, _, name = found[1].rpartition('.')
        spec = importlib.util.find_spec(parent) if parent else None
        if spec and spec.submodule_search_locations:
            return _nearest(name, {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)})
    elif found := re.search(r'Unable to open file: (.+?)\. Searched', message):
        try:
            find_gin_file(found[1])
        except ConfigurationError as error:
            return f' ({error})'
    return ''


def _macros() -> set[str]:
    from gin import config as gin_config

    return {scope for scope, selector in gin_config._CONFIG if selector == 'gin.macro'}


def _check_macros(bound: list[str], in_files: set[str]) -> None:
    """Every macro that is read has a value, and every macro given on the command line is in a file, or read."""
    import gin
    from gin import config as gin_config

    read = {
        reference.scoped_selector.rpartition('/')[0]
        for reference in gin_config.iterate_references(gin_config._CONFIG, to=gin.get_configurable(gin_config.macro))
    }
    defined = _macros()
    for name in sorted(read - defined):
        raise ConfigurationError(
            f'macro %{name} is read but has no value: give --gin.{name}=VALUE' + _nearest(name, defined)
        )
    for name in bound:
        if '.' not in name and name not in read | in_files:
            raise ConfigurationError(f'--gin.{name}: no gin file reads a macro {name!r}' + _nearest(name, read))
