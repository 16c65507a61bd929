"""Draw the sweep as one video and one image: grid.mp4, labelled, and contact.png with every setting.

    rows, axes  ->  grid.mp4: two axes as rows and columns, playing in step;  contact.png: three frames of each setting

Pillow draws the labels in its own font, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from videogen.config.sizes import parse_size
from videogen.data.files import atomic_file
from videogen.data.video_io import read_video, write_video
from videogen.sweep.choice import Choice
from videogen.sweep.findings import format_setting
from videogen.sweep.plan import Plan
from videogen.sweep.results import Row
from videogen.sweep.summary import Setting, setting_key

INK, QUIET, PAPER = (34, 38, 43), (124, 132, 140), (253, 253, 252)
GAP, LINE, FONT_SIZE = 6, 18, 13
MIN_CELL, MAX_WIDTH, MAX_HEIGHT = 112, 1920, 4320  # pixels, of a cell that is not reduced, and of the whole
MIN_REDUCED_CELL = 32  # pixels of a cell; a grid that would need smaller ones shows its first columns only
ROW_LABELS = 120  # pixels of the width of a grid that are left to them
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Dimension(NamedTuple):
    """Something that clips differ in: an axis, the prompt, the seed."""

    name: str
    values: list[str]

    def limit(self, num: int) -> Dimension:
        """Keep the first num values."""
        return self._replace(values=self.values[:num])


def dimensions(plan: Plan) -> list[Dimension]:
    """List the axes, then prompt and seed; the first two with several values are the grid's rows and columns."""
    axes = [Dimension(axis.name, axis.labels) for axis in plan.axes]
    prompts = list(dict.fromkeys(run.prompt for run in plan.bases))
    seeds = list(dict.fromkeys(str(run.seed) for run in plan.bases))
    return [*axes, Dimension("prompt", prompts), Dimension("seed", seeds)]


def position_of(row: Row, plan: Plan) -> dict[str, str]:
    """Return a row's value in every dimension."""
    axes = {axis.name: ", ".join(setting_key(row, axis.names)) for axis in plan.axes}
    return {**axes, "prompt": str(row["prompt"]), "seed": str(row["seed"])}


def default_position(plan: Plan, rows: Sequence[Row], choice: Choice | None) -> dict[str, str]:
    """Return the position of the grid in the dimensions that are neither its rows nor its columns."""
    first_clip = choice.setting.rows[0] if choice else next((row for row in rows if row.get("clip")), None)
    position = {dimension.name: dimension.values[0] for dimension in dimensions(plan)}
    if first_clip is not None:
        position |= position_of(first_clip, plan) | {name: position[name] for name in ("prompt", "seed")}
    return position


def write_grid(folder: Path, plan: Plan, rows: Sequence[Row], choice: Choice | None) -> Path | None:
    """Write grid.mp4 from the clips on disk, with as many rows and columns as can be seen; None if it has no clip."""
    several = [dimension for dimension in dimensions(plan) if len(dimension.values) > 1]
    blank = Dimension("", [""])
    down, along = several[:2] if len(several) > 1 else (blank, *several, blank)[:2]
    down = down.limit(MAX_HEIGHT // (MIN_CELL + GAP))
    along = along.limit((MAX_WIDTH - ROW_LABELS) // (MIN_REDUCED_CELL + GAP))
    default = default_position(plan, rows, choice)
    cells: dict[tuple[int, int], Row] = {}
    for row in rows:
        position = position_of(row, plan)
        others_match = all(position[name] == default[name] for name in default if name not in (down.name, along.name))
        value_down, value_along = position.get(down.name, ""), position.get(along.name, "")
        if row.get("clip") and others_match and value_down in down.values and value_along in along.values:
            cells[down.values.index(value_down), along.values.index(value_along)] = row
    if not cells:
        return None
    size = (MAX_WIDTH - ROW_LABELS) // len(along.values) - GAP, MAX_HEIGHT // len(down.values) - GAP
    frames = draw_grid({cell: read_cell(folder, row, max_size=size) for cell, row in cells.items()}, down, along)
    path = folder / "grid.mp4"
    write_video(path, frames, fps=max(float(str(row["fps"])) for row in cells.values()), overwrite=True)
    return path


def read_cell(folder: Path, row: Row, *, max_size: tuple[int, int]) -> Tensor:
    """Read a row's clip (t, h, w, 3): tiny frames enlarged pixel by pixel, huge ones reduced to max_size (w, h)."""
    path, (width, height) = folder / str(row["clip"]), parse_size(str(row["size"]))
    factor = max(1, round(MIN_CELL / width))
    if (scale := min(max_size[0] / (width * factor), max_size[1] / (height * factor))) < 1:
        w, h = (max(2, round(scale * factor * side / 2 - 0.5) * 2) for side in (width, height))
        return read_video(path, size=(w, h))
    return repeat(read_video(path), "t h w c -> t (h a) (w b) c", a=factor, b=factor)


def draw_grid(clips: Mapping[tuple[int, int], Tensor], down: Dimension, along: Dimension) -> Tensor:
    """Draw clips (t, h, w, 3) under their labels; a shorter clip holds its last frame, a smaller one keeps its size."""
    length = max(len(clip) for clip in clips.values())
    cell_h, cell_w = (max(clip.shape[axis] for clip in clips.values()) for axis in (1, 2))
    font = ImageFont.load_default(size=FONT_SIZE)
    left = max(round(font.getlength(f"{down.name} {value}")) for value in down.values) + 2 * GAP if down.name else GAP
    top = 2 * LINE
    height = top + len(down.values) * (cell_h + GAP) + GAP
    width = left + len(along.values) * (cell_w + GAP) + GAP
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, value in enumerate(along.values):
        label = fit_text(f"{along.name} {value}".strip(), cell_w, font)
        draw.text((left + j * (cell_w + GAP), LINE - 4), label, fill=INK, font=font)
    for i, value in enumerate(down.values):
        label = f"{down.name} {value}".strip()
        draw.text((GAP, top + i * (cell_h + GAP) + cell_h // 2 - 8), label, fill=INK, font=font)
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    empty = rearrange(pixels, "(h w c) -> h w c", h=sheet.height, c=3)
    frames = repeat(empty, "h w c -> t h w c", t=length).clone()
    for (i, j), clip in clips.items():
        y, x = top + i * (cell_h + GAP), left + j * (cell_w + GAP)
        held = torch.cat([clip, clip[-1:].expand(length - len(clip), -1, -1, -1)])
        frames[:, y : y + clip.shape[1], x : x + clip.shape[2]] = held
    return frames


def fit_text(text: str, width: int, font: Font) -> str:
    """Shorten a text to a width in pixels, with an ellipsis."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text


def write_contact_sheet(folder: Path, plan: Plan, settings: Sequence[Setting], choice: Choice | None) -> Path | None:
    """Write contact.png: first, middle and last frame of each setting's first clip, the recommended one marked."""
    strips = []
    for setting in settings:
        row = next((row for row in setting.rows if row.get("clip")), None)
        if row is not None:
            clip = read_cell(folder, row, max_size=(3 * MIN_CELL, 3 * MIN_CELL))
            is_chosen = choice is not None and setting.values == choice.setting.values
            label = format_setting(setting.values, plan.names)
            strips.append((clip[[0, len(clip) // 2, -1]], f"recommended: {label}" if is_chosen else label, is_chosen))
    if not strips:
        return None
    side_h, side_w = (max(frames.shape[axis] for frames, *_ in strips) for axis in (1, 2))
    cell_w, cell_h = 3 * side_w + 2 + 3 * GAP, side_h + 2 * LINE + GAP
    columns = max(1, min(MAX_WIDTH // cell_w, math.ceil(math.sqrt(len(strips) * cell_h / cell_w * 1.5))))
    sheet = Image.new("RGB", (columns * cell_w + 2 * GAP, math.ceil(len(strips) / columns) * cell_h + 2 * GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT_SIZE)
    for i, (frames, label, is_chosen) in enumerate(strips):
        x, y = 2 * GAP + i % columns * cell_w, 2 * GAP + i // columns * cell_h
        for j, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame.numpy()), (x + j * (side_w + 1), y))
        for k, line in enumerate(wrap_text(label, cell_w - 3 * GAP, font)[:2]):
            draw.text((x, y + side_h + 2 + k * (LINE - 3)), line, fill=INK if is_chosen else QUIET, font=font)
    path = folder / "contact.png"
    with atomic_file(path) as part:
        sheet.save(part, format="PNG")
    return path


def wrap_text(text: str, width: int, font: Font) -> list[str]:
    """Wrap a text into lines of at most a width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
