"""Words and TOML files onto the settings that a sweep tries.

    ["steps=4,8", "guidance=1:7:7", "grid.toml"]  ->  [Axis]  ->  every combination, as changes to a SampleConfig

Any field of SampleConfig is an axis. In a TOML file each key is an axis; the keys of a [[linked]] table go together:

    steps = [4, 8, 16]
    guidance = "1:7:7"

    [[linked]]
    sampler = ["euler", "heun"]
    shift = [1.0, 3.0]
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from videogen.config.parsing import from_mapping, nearest, read_values, to_mapping
from videogen.config.sample import SampleConfig

Changes = dict[str, object]  # some fields of a SampleConfig
FIELDS = {item.name: item for item in fields(SampleConfig)}
SCHEDULES = """'patch="1x2x2:0.5,1x1x1","1x1x1"'"""  # as a shell takes two of them
TEXTS = {name for name, hint in typing.get_type_hints(SampleConfig).items() if hint is str}


class Axis(NamedTuple):
    """One field, or several that go together; places holds their values, one tuple a place on the axis."""

    names: tuple[str, ...]
    places: tuple[tuple[object, ...], ...]

    @property
    def name(self) -> str:
        """ "steps", or "sampler, shift" where two are linked."""
        return ", ".join(self.names)


def read_axes(words: Sequence[str]) -> tuple[Axis, ...]:
    """The axes of a command line; each field stands on one of them."""
    axes = list(chain.from_iterable(map(read_word, words)))
    names = [name for axis in axes for name in axis.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} stands on two axes; give each setting one")
    return tuple(axes)


def read_word(word: str) -> Iterator[Axis]:
    """One word after --sweep: an axis, or a file of them."""
    name, equals, values = word.partition("=")
    if equals:
        yield make_axis({name: values})
    elif word.endswith(".toml"):
        yield from read_file(Path(word))
    else:
        raise ValueError(f"--sweep takes axis=a,b,c, axis=start:stop:count or a .toml file, got {word!r}")


def read_file(path: Path) -> Iterator[Axis]:
    """The axes of a TOML file."""
    if not path.is_file():
        raise ValueError(f"no sweep file {path}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        linked = table.pop("linked", [])
        if not isinstance(linked, list) or not all(isinstance(one, dict) and one for one in linked):
            raise ValueError("axes that go together stand in [[linked]] tables, double brackets")
        for columns in ({name: values} for name, values in table.items()):
            yield make_axis(columns)
        yield from map(make_axis, linked)
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def make_axis(columns: Mapping[str, object]) -> Axis:
    """An axis of one or several fields, every value of its field's type."""
    listed = {}
    for name, values in columns.items():
        field = name.strip().replace("-", "_")
        if field not in FIELDS:
            raise ValueError(f"no setting is called {name!r}{nearest(field, FIELDS)}")
        try:
            listed[field] = spread(values, text=field in TEXTS)
        except ValueError as error:
            raise ValueError(f"axis {field}: {error}") from None
        if field == "patch" and isinstance(values, str) and ":" in values and not values.startswith('"'):
            raise ValueError(f"axis patch: a schedule has commas of its own; quote each, as {SCHEDULES}, got {values}")
    if len(lengths := {name: len(values) for name, values in listed.items()}) and len(set(lengths.values())) > 1:
        raise ValueError(f"linked axes must have equally many values, got {lengths}")
    names, rows = tuple(listed), list(zip(*listed.values(), strict=True))
    if not rows:
        raise ValueError(f"axis {', '.join(names)} has no values")
    places = [convert(names, row) for row in rows]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"axis {', '.join(names)} has {', '.join(map(say, place))} twice")
    return Axis(names, tuple(places))


def spread(values: object, *, text: bool) -> list[object]:
    """The values of one field: a list, or a text with commas and ranges."""
    if isinstance(values, str):
        values = values.split(",") if text and not values.startswith('"') else read_values(values)
    listed = list(values) if isinstance(values, list) else [values]
    return [value.strip() if isinstance(value, str) else value for value in listed]


def convert(names: Sequence[str], values: Sequence[object]) -> tuple[object, ...]:
    """Values as their fields have them (4 is a guidance of 4.0), or the sentence of the field that refuses one."""
    try:
        changed = from_mapping(SampleConfig, dict(zip(names, values, strict=True)))
    except ValueError as error:
        raise ValueError(f"axis {', '.join(names)}: {error}") from None
    return tuple(getattr(changed, name) for name in names)


def combinations(axes: Sequence[Axis]) -> list[Changes]:
    """Every combination of the axes' places, the last axis changing fastest."""
    return [
        dict(chain.from_iterable(zip(axis.names, place, strict=True) for axis, place in zip(axes, places, strict=True)))
        for places in product(*(axis.places for axis in axes))
    ]


def changed(config: SampleConfig, changes: Changes) -> SampleConfig:
    """A config with some fields replaced; a length in frames is not held back by one in seconds."""
    free = {"seconds": None} if "frames" in changes and "seconds" not in changes else {}
    return from_mapping(SampleConfig, to_mapping(config) | free | changes)


def say(value: object) -> str:
    """A value as a person writes it: 4, 2.5, euler, 0.2-0.8, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return "-".join(map(say, value))
    return {None: "none", "": "(empty)"}.get(value, str(value))  # type: ignore[arg-type]
