"""Frozen data classes of settings, read from JSON with every key and type checked."""

import dataclasses
import json
import types
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from stnet.errors import ConfigError

Settings = TypeVar("Settings")


def changed_settings(settings: Any) -> str:
    """Return how to make settings: the name of their class, and what differs from its defaults."""
    fields = [field for field in dataclasses.fields(settings) if field.init]
    changed = [field.name for field in fields if getattr(settings, field.name) != _default(field)]
    return f"{type(settings).__name__}({', '.join(f'{name}={getattr(settings, name)!r}' for name in changed)})"


def first_difference(one: Any, other: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return where two settings of the same name differ first.

    Args:
        one: a setting, or a data class of them.
        other: of the same kind.
        name: what they are called.

    Returns:
        The name, within data classes as `model.queries`, and both values; None where there is no difference.
    """
    if one == other:
        return None
    if not dataclasses.is_dataclass(one):
        return name, one, other
    names = [field.name for field in dataclasses.fields(one) if getattr(one, field.name) != getattr(other, field.name)]
    return first_difference(getattr(one, names[0]), getattr(other, names[0]), f"{name}.{names[0]}".lstrip("."))


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def settings_from_json(cls: type[Settings], text: str, what: str) -> Settings:
    """Build the data class `cls` from a JSON object; absent keys keep their defaults.

    Fields may be bool, int, float, str, tuples of one of them, such a data class, or any of these or None.

    Args:
        cls: a data class.
        text: what `json.dumps(dataclasses.asdict(settings))` wrote.
        what: where the text comes from, for messages.

    Raises:
        ConfigError: with `what`, the key and the value: no JSON object, an unknown key, a value of another type, a key
            without a default that is absent.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what}: not valid JSON ({error})") from error
    return _from_object(cls, values, what)


def _from_object(cls: type[Settings], values: Any, what: str) -> Settings:
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: expected a JSON object, found {type(values).__name__}")
    types_of = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    names = [field.name for field in fields]
    unknown = [key for key in values if key not in names]
    if unknown:
        raise ConfigError(f"{what}: unknown keys {', '.join(map(repr, unknown))}; known are {', '.join(names)}")
    absent = [field.name for field in fields if field.name not in values and not _has_default(field)]
    if absent:
        raise ConfigError(f"{what}: lacks {', '.join(absent)}")
    return cls(**{key: _converted(value, types_of[key], f"{what}: {key}") for key, value in values.items()})


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _converted(value: Any, expected: Any, what: str) -> Any:
    if get_origin(expected) is types.UnionType:
        if value is None:
            return None
        expected = next(arm for arm in get_args(expected) if arm is not type(None))
    if dataclasses.is_dataclass(expected):
        return _from_object(expected, value, what)
    if get_origin(expected) is tuple:
        element = get_args(expected)[0]
        if isinstance(value, list | tuple):
            return tuple(_converted(item, element, what) for item in value)
    elif expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{what} is {value!r}; expected {getattr(expected, '__name__', expected)}")
