"""What gin binds, against what the functions and classes of this package say that they take."""

import collections.abc
import inspect
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gin import config as gin_config

_LATER = object()  # what a function will give when it is called
_CALL = re.compile(r"\n  In call to configurable '([\w.]+)' \(.*\)(?: in scope '.*')?")
_NAMES = {
    int: 'a whole number',
    float: 'a number',
    bool: 'True or False',
    str: 'text',
    os.PathLike: 'a path',
    types.NoneType: 'None',
}


def misfits() -> Iterator[str]:
    """What is wrong with the values that are bound to parameters of this package, a sentence each.

    First macros without a value; then values of the wrong type; then what a frozen dataclass says of its own
    fields, if it gets plain values only: such are made here once.
    """
    yield from _missing_macros()
    bound = {key: values for key, values in gin_config._CONFIG.items() if _ours(key[1])}
    for (_, selector), values in bound.items():
        parameters = inspect.signature(_wrapped(selector)).parameters
        for name, value in values.items():
            hint = parameters[name].annotation if name in parameters else Any
            plain = _plain(value)
            if not _fits(plain, hint) and (plain is not None or parameters[name].default is not None):
                yield f'{_wrapped(selector).__name__}.{name} is {plain!r}; it must be {_name(hint)}.'
    for (_, selector), values in bound.items():
        wrapped: Any = _wrapped(selector)
        plain = {name: _plain(value) for name, value in {**bound.get(('', selector), {}), **values}.items()}
        frozen = getattr(getattr(wrapped, '__dataclass_params__', None), 'frozen', False)
        if frozen and not _missing(wrapped, plain) and not any(_contains_later(value) for value in plain.values()):
            try:
                wrapped(**plain)
            except ValueError as error:
                yield str(error)


def unbound(selector: str) -> Iterator[str]:
    """What has no value and needs one, where a function is called whose values come from gin: `owner.parameter`.

    Args:
        selector: complete, of the function. What its values refer to is looked at likewise.
    """
    waiting, seen = [selector], set()
    while waiting:
        selector = waiting.pop(0)
        if selector in seen or not _ours(selector):
            continue
        seen.add(selector)
        values = {}
        for (_, other), bound in gin_config._CONFIG.items():
            if other == selector:
                values |= bound
                waiting += [ref.configurable.selector for ref in _references(bound) if ref.evaluate]
        yield from (f'{_wrapped(selector).__name__}.{name}' for name in _missing(_wrapped(selector), values))


def _references(value: Any) -> Iterator[gin_config.ConfigurableReference]:
    """What a value refers to, and what the macros in it refer to."""
    for reference in gin_config.iterate_references({(): {'': value}}):
        if macro := _macro(reference):
            yield from _references(gin_config._CONFIG.get((macro, 'gin.macro'), {}).get('value'))
        else:
            yield reference


def _missing(function: collections.abc.Callable, given: collections.abc.Container[str]) -> list[str]:
    """Parameters without a default that are not among `given`."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default in (inspect.Parameter.empty, gin_config.REQUIRED)
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in given
    ]


def explained(message: str) -> str:
    """An error's text without gin's list of callers, and with the macro that gave the parameter which it names.

    A parameter is named as `Owner.parameter`, or, if gin called the owner, by itself.
    """
    callers = set(_CALL.findall(message))
    message = _CALL.sub('', message)
    for (_, selector), values in gin_config._CONFIG.items():
        owner = selector.rpartition('.')[2]
        for name, value in values.items():
            macro = _macro(value)
            if macro is None or re.search(rf'\b{re.escape(macro)}\b', message):
                continue
            alone = rf'|(?<![\w.]){name}' + ('' if '_' in name else '(?==)') if owner in callers else ''
            if found := re.search(rf'(?:\b{owner}\.{name}{alone})\b(?:\[[^]]*\])?', message):
                message = f'{message[: found.end()]} (set by {macro}){message[found.end() :]}'
    return message


def _ours(selector: str) -> bool:
    return selector.split('.')[0] == 'slm_jax' and selector in gin_config._REGISTRY


def _wrapped(selector: str) -> Any:
    return gin_config._REGISTRY[selector].wrapped


def leave_out(only: Mapping[str, Any]) -> None:
    """Drops what is bound to macros without a value, unless it is read by what is asked for.

    Args:
        only: names of macros ('%MODEL') and parameters that are asked for; a macro without a value gets the one here.
    """
    for name in _without_value():
        if only.get(f'%{name}') is not None:
            gin_config.bind_parameter(f'%{name}', only[f'%{name}'])
    missing = set(_without_value()) - _read(only)
    while missing:
        name = missing.pop()
        gin_config._CONFIG.pop((name, 'gin.macro'), None)
        for (scope, selector), values in gin_config._CONFIG.items():
            for parameter in [key for key, value in values.items() if name in _macros_in(value)]:
                if selector == 'gin.macro':
                    missing.add(scope)
                else:
                    del values[parameter]


def _read(only: Iterable[str]) -> set[str]:
    """Names of the macros that parameters and macros read, and what these call."""
    waiting = [value for key in only if (value := _bound(key)) is not None]
    macros, called = {key[1:] for key in only if key.startswith('%')}, set()
    while waiting:
        for reference in gin_config.iterate_references({(): {'': waiting.pop()}}):
            selector = reference.configurable.selector
            if (macro := _macro(reference)) and macro not in macros:
                macros.add(macro)
                waiting.append(_bound(f'%{macro}'))
            elif not macro and selector not in called:
                called.add(selector)
                bound = [values for (_, other), values in gin_config._CONFIG.items() if other == selector]
                waiting += [value for values in bound for value in values.values()]
    return macros


def _bound(key: str) -> Any:
    if key.startswith('%'):
        return gin_config._CONFIG.get((key[1:], 'gin.macro'), {}).get('value')
    selector, _, parameter = key.rpartition('.')
    return gin_config._CONFIG.get(('', selector), {}).get(parameter)


def _macros_in(value: Any) -> set[str | None]:
    return {_macro(reference) for reference in gin_config.iterate_references({(): {'': value}})}


def _without_value() -> list[str]:
    return [
        scope
        for (scope, selector), values in gin_config._CONFIG.items()
        if selector == 'gin.macro' and _is_required(values.get('value'))
    ]


def _missing_macros() -> Iterator[str]:
    if names := _without_value():
        given = ' '.join(f'--gin.{name}=VALUE' for name in names)
        yield f'{", ".join(names)} {"has" if len(names) == 1 else "have"} no value: give {given}.'


def _is_required(value: Any) -> bool:
    constant = isinstance(value, gin_config.ConfigurableReference) and value.configurable.wrapped
    return constant is gin_config._retrieve_constant and value.scoped_configurable_fn() is gin_config.REQUIRED


def _macro(value: Any) -> str | None:
    """Name of the macro that a value refers to."""
    if isinstance(value, gin_config.ConfigurableReference) and value.configurable.wrapped is gin_config.macro:
        return '/'.join(value.scopes)
    return None


def _plain(value: Any) -> Any:
    """The value with its macros put in, and `_LATER` for what is called."""
    if macro := _macro(value):
        return _plain(gin_config._CONFIG.get((macro, 'gin.macro'), {}).get('value', _LATER))
    if isinstance(value, gin_config.ConfigurableReference):
        return _LATER
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


def _contains_later(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return value is _LATER or any(map(_contains_later, parts))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the type of an annotation; what is not known of either fits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is _LATER or hint in (Any, inspect.Parameter.empty) or isinstance(hint, str):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if hint is None:
        return value is None
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if arguments[1:] != (...,):
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return all(_fits(part, arguments[0]) for part in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        keys, values = arguments
        return isinstance(value, dict) and all(_fits(k, keys) and _fits(v, values) for k, v in value.items())
    if isinstance(origin, type) and issubclass(origin, collections.abc.Sequence):
        if isinstance(value, str):
            return arguments == (str,)
        return isinstance(value, (list, tuple)) and all(_fits(part, arguments[0]) for part in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if getattr(hint, '_is_protocol', False):  # what satisfies one is made by a call
        return not isinstance(value, (bool, int, float, str, list, tuple, dict))
    if isinstance(hint, type):
        return isinstance(value, hint)
    return True


def _name(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(map(_name, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f'a dictionary {{{_name(arguments[0])}: {_name(arguments[1])}}}'
    if isinstance(origin, type) and issubclass(origin, collections.abc.Sequence):
        return f'a list ({", ".join(_name(argument) for argument in arguments if argument is not ...)})'
    return _NAMES.get(hint) or str(getattr(hint, '__name__', hint))
