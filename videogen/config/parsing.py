"""Build config dataclasses from TOML, JSON and flags, and turn them back into plain values.

mapping of str, numbers, lists, tables  <->  a frozen dataclass;  "4,8", "1:7:7"  ->  values
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import re
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast

T = TypeVar("T")


MAX_TEXT = 20_000  # characters; Wan's encoder reads 512 tokens


def nearest(name: str, allowed: Collection[str]) -> str:
    """Suggest the allowed name that is spelled most like a wrong one: "; did you mean 'steps'?" or nothing."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_text(text: str, name: str) -> str:
    """Return a text, or refuse one that no encoder reads: half a character, bytes that are not UTF-8, a whole book."""
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"{name} may have {MAX_TEXT:,} characters, of which encoders read a few thousand; got {len(text):,}"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds half a character, or bytes that are not UTF-8: {text!a}; write it anew")
    return text


def from_mapping(cls: type[T], values: Mapping[str, object], where: str = "") -> T:
    """Build a config dataclass from plain values; a ValueError for an unknown key suggests the nearest right one."""
    hints = typing.get_type_hints(cls)
    converted: dict[str, object] = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown key {where + key!r}{nearest(key, hints)}")
        converted[key] = convert(hints[key], value, f"{where}{key}")
    return cls(**converted)


def convert(hint: object, value: object, name: str) -> object:
    """Convert one plain TOML or JSON value to the type of a field; a ValueError names the field."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a table, got {value!r}")
        return from_mapping(hint, value, f"{name}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in options and len(options) == 2:  # X | None
        hint = options[options[0] is type(None)]
        if value is None:
            return None
        origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
        return value
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        kinds = options if origin is tuple and options[-1] is not Ellipsis else (options[0],) * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{name} must have {len(kinds)} values, got {value!r}")
        return tuple(convert(kind, item, name) for kind, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): convert(options[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin in (tuple, Sequence, dict):
        raise ValueError(f"{name} must be a {'table' if origin is dict else 'list'}, got {value!r}")
    kinds = options or (hint,)
    if Path in kinds and isinstance(value, str | Path):
        return Path(value)
    if float in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    for kind in kinds:
        if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    names = " or ".join(kind.__name__ for kind in kinds if isinstance(kind, type) and kind is not type(None))
    raise ValueError(f"{name} must be of type {names}, got {value!r}")


def to_mapping(config: object) -> dict[str, object]:
    """Convert a config to plain JSON values, from which from_mapping builds it again."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}  # type: ignore[arg-type]


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def load_toml(cls: type[T], path: Path, *, over: T | None = None) -> T:
    """Read a config file, over the values of another config if one is given."""
    if not path.is_file():
        raise ValueError(f"no config file {path}; the recipes are in configs/")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    try:
        if over is not None:  # frames in the file override seconds from elsewhere, which would win in one config
            values = to_mapping(over) | ({"seconds": None} if "frames" in values else {}) | values
        return from_mapping(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def format_toml(config: object) -> str:
    """Write a config as TOML, without the values that are its defaults; load_toml reads it again."""
    plain, default = to_mapping(config), to_mapping(type(config)())
    lines = [f"{key} = {toml_value(plain[key])}" for key in plain if _is_shown(plain[key], default[key])]
    for name, table in plain.items():
        if isinstance(table, dict) and table != default[name]:
            lines += ["", f"[{name}]", *_toml_table(name, table, cast("dict[str, object]", default[name]))]
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml_table(name: str, table: Mapping[str, object], default: Mapping[str, object]) -> Iterator[str]:
    yield from (f"{key} = {toml_value(table[key])}" for key in table if _is_shown(table[key], default[key]))
    for key, inner in table.items():
        if isinstance(inner, dict) and inner != default[key]:
            yield from ("", f"[{name}.{key}]")
            yield from (f"{json.dumps(word)} = {toml_value(value)}" for word, value in inner.items())


def _is_shown(value: object, default: object) -> bool:
    return value != default and value is not None and not isinstance(value, dict)


def toml_value(value: object) -> str:
    """Write one value; TOML takes JSON's strings, numbers, booleans and lists of them, with DEL escaped."""
    if isinstance(value, dict):
        pairs = (f"{name} = {toml_value(item)}" for name, item in value.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def dotted(config: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Flatten a config's mapping into values by dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{where}{key}.")
        else:
            yield where + key, value


def read_values(text: str) -> list[object]:
    """Parse "4,8" to [4, 8], "1:7:7" to seven numbers from 1 to 7, "[0,1],[0,2]" to two lists, the rest to words."""
    with contextlib.suppress(json.JSONDecodeError):
        return list(json.loads(f"[{text}]"))
    return [value for word in text.split(",") for value in read_word(word.strip())]


def read_word(word: str) -> list[object]:
    """Parse one value of a list, or the numbers of a range start:stop:count."""
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    if span := re.fullmatch(rf"({number}):({number}):(\d+)", word):
        start, stop, count = float(span[1]), float(span[2]), int(span[3])
        if count < 2:
            raise ValueError(f"a range start:stop:count has at least 2 numbers, got {word}")
        exact = (round(start + i * (stop - start) / (count - 1), 9) for i in range(count))
        return [int(value) if value.is_integer() else value for value in exact]
    if re.fullmatch(rf"{number}:{number}", word):
        raise ValueError(f"a range is start:stop:count, such as 1:7:7, got {word}")
    with contextlib.suppress(json.JSONDecodeError):
        return [json.loads(word)]
    return [word]
