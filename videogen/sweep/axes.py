"""Parse command-line words and TOML files into the axes of a sweep.

    ["steps=4,8", "guidance=1:7:7", "grid.toml"]  ->  [Axis]  ->  every combination, as changes to a SampleConfig

Any field of SampleConfig is an axis. In a TOML file each key is an axis; the keys of a [[linked]] table vary together:

    steps = [4, 8, 16]
    guidance = "1:7:7"

    [[linked]]
    sampler = ["euler", "heun"]
    shift = [1.0, 3.0]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple, get_type_hints

from videogen.config.parsing import from_mapping, nearest, read_values, to_mapping
from videogen.config.sample import SampleConfig

Changes = dict[str, object]  # some fields of a SampleConfig
FIELDS = get_type_hints(SampleConfig)
QUOTED = """'patch="1x2x2:0.5,1x1x1","1x1x1"'"""  # two patch schedules, quoted for a shell
TEXT_FIELDS = {name for name, hint in FIELDS.items() if hint is str}


class Axis(NamedTuple):
    """One field, or several that vary together; places holds their values, one tuple for each place on the axis."""

    names: tuple[str, ...]
    places: tuple[tuple[object, ...], ...]

    @property
    def name(self) -> str:
        """ "steps", or "sampler, shift" for linked fields."""
        return ", ".join(self.names)

    @property
    def labels(self) -> list[str]:
        """The places as texts."""
        return [", ".join(map(format_value, place)) for place in self.places]


def read_axes(words: Sequence[str]) -> tuple[Axis, ...]:
    """Parse the words after --sweep into axes; a ValueError where a field is on two of them."""
    axes = list(chain.from_iterable(map(read_word, words)))
    names = [name for axis in axes for name in axis.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} stands on two axes; put each setting on one axis")
    return tuple(axes)


def read_word(word: str) -> Iterator[Axis]:
    """Parse one word: an axis, or a file of axes."""
    name, equals, values = word.partition("=")
    if equals:
        yield make_axis({name: values})
    elif word.endswith(".toml"):
        yield from read_file(Path(word))
    else:
        raise ValueError(f"--sweep takes axis=a,b,c, axis=start:stop:count or a .toml file, got {word!r}")


def read_file(path: Path) -> Iterator[Axis]:
    """Parse the axes of a TOML file, the linked ones last."""
    if not path.is_file():
        raise ValueError(f"there is no sweep file {path}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        linked = table.pop("linked", [])
        if not isinstance(linked, list) or not all(isinstance(columns, dict) and columns for columns in linked):
            raise ValueError("linked axes are written as a [[linked]] table, with double brackets and a key for each")
        yield from map(make_axis, [*({name: values} for name, values in table.items()), *linked])
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def make_axis(columns: Mapping[str, object]) -> Axis:
    """Build an axis from the values of one or several fields, each converted to its field's type."""
    values_of = {}
    for name, values in columns.items():
        field = name.strip().replace("-", "_")
        if field not in FIELDS:
            raise ValueError(f"no setting is called {name!r}{nearest(field, FIELDS)}")
        try:
            values_of[field] = parse_values(values, is_text=field in TEXT_FIELDS)
        except ValueError as error:
            raise ValueError(f"axis {field}: {error}") from None
        if field == "patch" and isinstance(values, str) and ":" in values and not values.startswith('"'):
            raise ValueError(f"axis patch: a schedule has commas of its own; quote each, as {QUOTED}, got {values}")
    lengths = {name: len(values) for name, values in values_of.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"linked axes must have equally many values, got {lengths}")
    names = tuple(values_of)
    places = [convert(names, row) for row in zip(*values_of.values(), strict=True)]
    if not places:
        raise ValueError(f"axis {', '.join(names)} has no values")
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"axis {', '.join(names)} has {', '.join(map(format_value, place))} twice")
    return Axis(names, tuple(places))


def parse_values(values: object, *, is_text: bool) -> list[object]:
    """Parse the values of one field: a list, or a text with commas and ranges."""
    if isinstance(values, str):
        values = values.split(",") if is_text and not values.startswith('"') else read_values(values)
    items = list(values) if isinstance(values, list) else [values]
    return [item.strip() if isinstance(item, str) else item for item in items]


def convert(names: Sequence[str], values: Sequence[object]) -> tuple[object, ...]:
    """Convert values to their fields' types (4 is a guidance of 4.0); the ValueError is that of the field."""
    try:
        config = from_mapping(SampleConfig, dict(zip(names, values, strict=True)))
    except ValueError as error:
        raise ValueError(f"axis {', '.join(names)}: {error}") from None
    return tuple(getattr(config, name) for name in names)


def combinations(axes: Sequence[Axis]) -> list[Changes]:
    """List every combination of the axes' places, the last axis changing fastest."""
    names = [name for axis in axes for name in axis.names]
    combined = (chain.from_iterable(places) for places in product(*(axis.places for axis in axes)))
    return [dict(zip(names, values, strict=True)) for values in combined]


def with_changes(config: SampleConfig, changes: Changes) -> SampleConfig:
    """Replace some fields of a config; a length in frames overrides the config's length in seconds."""
    seconds = {"seconds": None} if "frames" in changes and "seconds" not in changes else {}
    return from_mapping(SampleConfig, to_mapping(config) | seconds | changes)


def format_value(value: object) -> str:
    """Format a value as a person writes it: 4, 2.5, euler, 0.2-0.8, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return "-".join(map(format_value, value))
    return {None: "none", "": "(empty)"}.get(value, str(value))  # type: ignore[arg-type]
