"""The sweep as one video and one picture: grid.mp4, labelled, and contact.png with every setting.

    rows, axes  ->  grid.mp4: two axes as rows and columns, playing in step;  contact.png: three frames a setting

Drawn by Pillow in its own font, so that they are the same everywhere.
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
from videogen.data.video_io import read_video, write_video
from videogen.sweep.findings import axis_values, label
from videogen.sweep.plan import Plan
from videogen.sweep.results import Row
from videogen.sweep.summary import Choice, Setting, value_of

INK, QUIET, PAPER = (34, 38, 43), (124, 132, 140), (253, 253, 252)
GAP, LINE, FONT_SIZE = 6, 18, 13
LEAST_SIDE, MOST_WIDTH, MOST_HEIGHT = 112, 1920, 4320  # pixels: of a cell, of the whole
LEAST_SEEN = 32  # pixels of a cell, below which a grid shows the first columns alone


class Dimension(NamedTuple):
    """Something that clips differ in: an axis, the prompt, the seed."""

    name: str
    values: list[str]

    def first(self, num: int) -> Dimension:
        """So many of its values at most."""
        return self._replace(values=self.values[:num])


def dimensions(plan: Plan) -> list[Dimension]:
    """The axes, then prompt and seed; the first two of more than one value are the grid's rows and columns."""
    axes = [Dimension(axis.name, axis_values(axis)) for axis in plan.axes]
    prompts = list(dict.fromkeys(run.prompt for run in plan.bases))
    seeds = list(dict.fromkeys(str(run.seed) for run in plan.bases))
    return [*axes, Dimension("prompt", prompts), Dimension("seed", seeds)]


def place_of(row: Row, plan: Plan) -> dict[str, str]:
    """A row's value in every dimension."""
    axes = {axis.name: ", ".join(value_of(row, axis.names)) for axis in plan.axes}
    return {**axes, "prompt": str(row["prompt"]), "seed": str(row["seed"])}


def usual_place(plan: Plan, rows: Sequence[Row], choice: Choice | None) -> dict[str, str]:
    """Where the grid stands on the dimensions that are neither its rows nor its columns."""
    chosen = choice.setting.rows[0] if choice else next((row for row in rows if row.get("clip")), None)
    first = {dimension.name: dimension.values[0] for dimension in dimensions(plan)}
    if chosen is None:
        return first
    return first | {name: value for name, value in place_of(chosen, plan).items() if name not in ("prompt", "seed")}


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, so that it is the same everywhere."""
    return ImageFont.load_default(size=FONT_SIZE)


def write_grid(folder: Path, plan: Plan, rows: Sequence[Row], choice: Choice | None) -> Path | None:
    """grid.mp4, from the clips on disk: as many of its first rows and columns as can be seen; none of no clip there."""
    several = [dimension for dimension in dimensions(plan) if len(dimension.values) > 1]
    down = several[0] if len(several) > 1 else Dimension("", [""])
    along = several[1] if len(several) > 1 else [*several, Dimension("", [""])][0]
    down = down.first(MOST_HEIGHT // (LEAST_SIDE + GAP))
    along = along.first((MOST_WIDTH - 120) // (LEAST_SEEN + GAP))
    usual = usual_place(plan, rows, choice)
    found: dict[tuple[int, int], Row] = {}
    for row in rows:
        place = place_of(row, plan)
        others = all(place[name] == usual[name] for name in usual if name not in (down.name, along.name))
        at = place.get(down.name, ""), place.get(along.name, "")
        if row.get("clip") and others and at[0] in down.values and at[1] in along.values:
            found[down.values.index(at[0]), along.values.index(at[1])] = row
    if not found:
        return None
    widest, tallest = (MOST_WIDTH - 120) // len(along.values) - GAP, MOST_HEIGHT // len(down.values) - GAP
    clips = {at: read_cell(folder / str(row["clip"]), str(row["size"]), widest, tallest) for at, row in found.items()}
    frames = lay_out(clips, down, along)
    path = folder / "grid.mp4"
    write_video(path, frames, fps=max(float(str(row["fps"])) for row in found.values()), overwrite=True)
    return path


def read_cell(path: Path, size: str, widest: int, tallest: int) -> Tensor:
    """A clip's frames, tiny ones enlarged pixel by pixel and huge ones reduced."""
    width, height = parse_size(size)
    factor = max(1, round(LEAST_SIDE / width))
    if (less := min(widest / (width * factor), tallest / (height * factor))) < 1:
        w, h = (max(2, round(less * factor * side / 2 - 0.5) * 2) for side in (width, height))
        return read_video(path, size=(w, h))
    return repeat(read_video(path), "t h w c -> t (h a) (w b) c", a=factor, b=factor)


def lay_out(clips: Mapping[tuple[int, int], Tensor], down: Dimension, along: Dimension) -> Tensor:
    """Cells under their labels, (t, h, w, 3); a shorter clip holds its last frame, a smaller one keeps its size."""
    length = max(len(clip) for clip in clips.values())
    cell_h, cell_w = (max(clip.shape[axis] for clip in clips.values()) for axis in (1, 2))
    margin = max((round(font().getlength(f"{down.name} {value}")) for value in down.values), default=0) + 2 * GAP
    margin = margin if down.name else GAP
    top = 2 * LINE
    height = top + len(down.values) * (cell_h + GAP) + GAP
    width = margin + len(along.values) * (cell_w + GAP) + GAP
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, value in enumerate(along.values):
        told = fit(f"{along.name} {value}".strip(), cell_w)
        draw.text((margin + j * (cell_w + GAP), LINE - 4), told, fill=INK, font=font())
    for i, value in enumerate(down.values):
        draw.text(
            (GAP, top + i * (cell_h + GAP) + cell_h // 2 - 8), f"{down.name} {value}".strip(), fill=INK, font=font()
        )
    frames = repeat(to_tensor(sheet), "h w c -> t h w c", t=length).clone()
    for (i, j), clip in clips.items():
        y, x = top + i * (cell_h + GAP), margin + j * (cell_w + GAP)
        held = torch.cat([clip, clip[-1:].expand(length - len(clip), -1, -1, -1)])
        frames[:, y : y + clip.shape[1], x : x + clip.shape[2]] = held
    return frames


def fit(text: str, width: int) -> str:
    """A text cut to a width in pixels."""
    while text and font().getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture (h, w, 3) uint8."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return rearrange(pixels, "(h w c) -> h w c", h=image.height, c=3)


def write_contact(folder: Path, plan: Plan, settings: Sequence[Setting], choice: Choice | None) -> Path | None:
    """contact.png: first, middle and last frame of each setting's first clip, the recommended one marked."""
    strips = []
    for one in settings:
        row = next((row for row in one.rows if row.get("clip")), None)
        if row is None:
            continue
        clip = read_cell(folder / str(row["clip"]), str(row["size"]), 3 * LEAST_SIDE, 3 * LEAST_SIDE)
        chosen = choice is not None and one.values == choice.setting.values
        strips.append((clip[[0, len(clip) // 2, -1]], label(one.values, plan.names), chosen))
    if not strips:
        return None
    side_h, side_w = (max(frames.shape[axis] for frames, *_ in strips) for axis in (1, 2))
    cell_w, cell_h = 3 * side_w + 2 + 3 * GAP, side_h + 2 * LINE + GAP
    columns = max(1, min(MOST_WIDTH // cell_w, math.ceil(math.sqrt(len(strips) * cell_h / cell_w * 1.5))))
    lines = math.ceil(len(strips) / columns)
    sheet = Image.new("RGB", (columns * cell_w + 2 * GAP, lines * cell_h + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (frames, told, chosen) in enumerate(strips):
        x, y = 2 * GAP + i % columns * cell_w, 2 * GAP + i // columns * cell_h
        for j, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame.numpy()), (x + j * (side_w + 1), y))
        for k, line in enumerate(wrap(f"recommended: {told}" if chosen else told, cell_w - 3 * GAP)[:2]):
            draw.text((x, y + side_h + 2 + k * (LINE - 3)), line, fill=INK if chosen else QUIET, font=font())
    path = folder / "contact.png"
    part = path.with_name("contact.png.part")
    sheet.save(part, format="PNG")
    part.replace(path)
    return path


def wrap(text: str, width: int) -> list[str]:
    """A text in lines of at most so many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
