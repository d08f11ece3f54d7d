"""Settings of a run from TOML tables and from `key=value` texts, into the dataclass that documents them.

Does not cover: what a setting means, or its range (its trainer says both).
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from medenv.errors import RunError

S = TypeVar("S")


def read_settings(kind: type[S], table: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> S:
    """Settings (a dataclass) from a TOML table or from `key=value` texts; `env.max_turns` reaches into the table `env`.

    Texts are read as TOML values, or as they stand. `start`: settings under those of `table`, such as `saved_settings` of a run that
    is resumed. RunError for an unknown key, with the closest one, and for a wrong type.
    """
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in (*(start or {}).items(), *table.items()):
        name, _, inner = key.partition(".")
        if name not in types:
            close = difflib.get_close_matches(name, types, n=1, cutoff=0.4)
            raise RunError(f"unknown setting {key!r}{f'; did you mean {close[0]!r}?' if close else ''} (known: {', '.join(sorted(types))})")
        value = _parsed(value) if isinstance(value, str) and types[name] is not str else value
        if inner:
            value = {**values.get(name, {}), inner: value}
        elif isinstance(value, Mapping):
            value = {**values.get(name, {}), **value}
        values[name] = _typed(key, value, types[name])
    return kind(**values)


def _parsed(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(key: str, value: Any, wanted: Any) -> Any:
    kinds = typing.get_args(wanted) or (wanted,)
    plain = tuple(typing.get_origin(k) or k for k in kinds) if wanted is not dict else (dict,)
    if typing.get_origin(wanted) is dict:
        plain = (dict,)
    if float in plain and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in plain and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        names = " or ".join("none" if k is type(None) else k.__name__ for k in plain)
        raise RunError(f"setting {key} is {value!r}: give {names}")
    return value
