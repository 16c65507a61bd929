"""Render things as templates, and measure how much of a picture each would explain.

Appearance (kind, colour), Pose  ->  layer (t, s, s, 4);  that against a Canvas  ->  agreement and energy, each (t,)

A thing that covers a share c of a pixel with the colour T (premultiplied) changes the background B by e = T - cB. Where
the picture differs from the background by q, showing the thing at opacity a lowers the squared error by
2a(q·e) - a²(e·e): the two sums, agreement q·e and energy e·e, are all that is needed to choose among things and poses.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import NamedTuple, TypeVar

import numpy as np
from einops import rearrange

from videogen.toybox.judge.colour_space import RGB_TO_YCC, halve, to_ycc
from videogen.toybox.world.motions import Pose, Thing
from videogen.toybox.world.shapes import render_thing
from videogen.toybox.world.things import COLOURS, KINDS, SPRITES


class Appearance(NamedTuple):
    """A thing's kind and colour; the colour is empty where the kind has its own."""

    kind: str
    colour: str


def appearances_of(kind: str) -> list[Appearance]:
    """List a kind in all its colours."""
    return [Appearance(kind, colour) for colour in (("",) if kind in SPRITES else tuple(COLOURS))]


APPEARANCES: tuple[Appearance, ...] = tuple(appearance for kind in KINDS for appearance in appearances_of(kind))


class Canvas(NamedTuple):
    """Frames to be explained by things in front of a known background, in YCC."""

    residual: np.ndarray  # (t, h, w, 3): q, the frames minus the background
    plate: np.ndarray  # (t, h, w, 3): B, the background
    weight: np.ndarray  # (t, h, w): how much each pixel counts

    def padded(self, border: int) -> Canvas:
        """Add a border in which no pixel counts."""
        widths = ((0, 0), (border, border), (border, border), (0, 0))
        return Canvas(*(np.pad(part, widths[: part.ndim]) for part in self))

    def halved(self) -> Canvas:
        """Average the canvas to half its size."""
        return Canvas(halve(self.residual), halve(self.plate), halve(self.weight[..., None])[..., 0])

    def crop(self, x: np.ndarray, y: np.ndarray, radius: float) -> Crop:
        """Crop a square about a point of each frame, (t,); pixels beyond the frame have no weight."""
        height, width = self.weight.shape[1:]
        span = np.arange(-ceil(radius) - 1, ceil(radius) + 2)
        rows, columns = (rearrange(np.floor(centre).astype(int), "t -> t 1") + span for centre in (y, x))
        row_inside, column_inside = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        inside = rearrange(row_inside, "t s -> t s 1") & rearrange(column_inside, "t s -> t 1 s")
        place = (
            rearrange(np.arange(len(rows)), "t -> t 1 1"),
            rearrange(rows.clip(0, height - 1), "t s -> t s 1"),
            rearrange(columns.clip(0, width - 1), "t s -> t 1 s"),
        )
        return Crop(rows, columns, self.residual[place], self.plate[place], self.weight[place] * inside)

    def full_energy(self, appearance: Appearance, pose: Pose) -> np.ndarray:
        """Measure a thing's energy if all of it were inside the frame and before everything else, (t,)."""
        crop = self.crop(pose.x, pose.y, float(pose.radius.max()))
        change = crop.change(crop.render(appearance, pose))
        return np.einsum("thwc,thwc->t", change, change)

    def residual_energy(self, pose: Pose) -> np.ndarray:
        """Measure the energy q·q that there is to be explained in a thing's circle, (t,)."""
        crop = self.crop(pose.x, pose.y, float(pose.radius.max()))
        x, y, radius = (rearrange(part, "t -> t 1 1") for part in pose[:3])
        in_circle = np.hypot(*crop.offsets(x, y)) < radius
        return np.einsum("thwc,thwc,thw->t", crop.residual, crop.residual, crop.weight * in_circle)

    def spectra(self) -> CanvasSpectra:
        """Transform the canvas for matching templates at every place at once."""
        residual, plate, weight = self
        weighted = rearrange(weight, "t h w -> t h w 1")
        return CanvasSpectra(
            size=(weight.shape[1], weight.shape[2]),
            residual=spectrum(rearrange(weighted * residual, "t h w c -> c t h w")),
            residual_plate=spectrum(weight * np.einsum("thwc,thwc->thw", residual, plate)),
            residual_squared=spectrum(weight * np.einsum("thwc,thwc->thw", residual, residual)),
            weight=spectrum(weight),
            plate=spectrum(rearrange(weighted * plate, "t h w c -> c t h w")),
            plate_squared=spectrum(weight * np.einsum("thwc,thwc->thw", plate, plate)),
        )


class Crop(NamedTuple):
    """A square of pixels of each frame of a canvas: places (t, s), contents (t, s, s)."""

    rows: np.ndarray
    columns: np.ndarray
    residual: np.ndarray
    plate: np.ndarray
    weight: np.ndarray

    def offsets(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute how far pixel centres lie right of and below points (t, 1, 1), as (t, 1, s) and (t, s, 1)."""
        return rearrange(self.columns, "t s -> t 1 s") + 0.5 - x, rearrange(self.rows, "t s -> t s 1") + 0.5 - y

    def render(self, appearance: Appearance, pose: Pose) -> np.ndarray:
        """Render a thing's layer in these pixels, (t, s, s, 4): premultiplied YCC and coverage."""
        x, y, radius, angle = (rearrange(part.astype(np.float32), "t -> t 1 1") for part in pose[:4])
        right, down = self.offsets(x, y)
        return render_at(appearance, right / radius, down / radius, angle, radius)

    def change(self, layer: np.ndarray) -> np.ndarray:
        """Compute e (t, s, s, 3), by which an opaque layer (t, s, s, 4) changes the background."""
        return layer[..., :3] - layer[..., 3:] * self.plate

    def measure(self, layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measure the agreement and the energy of a layer, each (t,)."""
        change = self.change(layer)
        agreement = np.einsum("thwc,thwc,thw->t", self.residual, change, self.weight)
        return agreement, np.einsum("thwc,thwc,thw->t", change, change, self.weight)


Frames = TypeVar("Frames", Canvas, Pose)


def select_frames(arrays: Frames, frames: np.ndarray) -> Frames:
    """Take some frames of a canvas or a pose, by number or by mask."""
    return type(arrays)(*(part[frames] for part in arrays))


def render_at(
    appearance: Appearance, right: np.ndarray, down: np.ndarray, angle: np.ndarray | float, radius: np.ndarray
) -> np.ndarray:
    """Render a turned thing at points given in its radii from its centre, (..., 4): premultiplied YCC and coverage."""
    kind, colour = appearance
    thing = Thing(kind=kind, colour=colour, size="", motion="still", radius=float(np.mean(radius)))
    cosine, sine = np.cos(angle), np.sin(angle)
    rgba = render_thing(thing, cosine * right + sine * down, sine * right - cosine * down, radius)
    return np.concatenate([rgba[..., :3] @ RGB_TO_YCC.T, rgba[..., 3:]], axis=-1)


def gain(agreement: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Compute by how much the squared error falls at the best opacity in [0, 1]."""
    opacity = np.clip(agreement / np.maximum(energy, 1e-6), 0, 1)
    return opacity * (2 * agreement - opacity * energy)


def likeness(explained: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Rate the explained share of a thing's energy, 0 to 1: brighter than it should be is as wrong as fainter."""
    return np.clip(1 - np.abs(1 - explained / np.maximum(energy, 1.0)), 0, 1)


# --- agreement and energy at every place of a frame at once, by Fourier transforms


class CanvasSpectra(NamedTuple):
    """The spectra (t, h, w / 2 + 1) of a canvas from which agreement and energy are summed, and its frames' size."""

    size: tuple[int, int]
    residual: np.ndarray  # w q, three channels first
    residual_plate: np.ndarray  # w q·B
    residual_squared: np.ndarray  # w q·q
    weight: np.ndarray  # w
    plate: np.ndarray  # w B, three channels first
    plate_squared: np.ndarray  # w B·B

    def inverse(self, spectra: np.ndarray) -> np.ndarray:
        """Transform spectra back to pictures of the frames' size."""
        return np.fft.irfft2(spectra, s=self.size)

    def agreement(self, template: TemplateSpectra) -> np.ndarray:
        """Measure the agreement of a template centred on every pixel, (t, h, w)."""
        explained = np.einsum("chw,cthw->thw", template.colour, self.residual)
        return self.inverse(explained - template.coverage * self.residual_plate)

    def energy(self, template: TemplateSpectra) -> np.ndarray:
        """Measure the energy of a template centred on every pixel, (t, h, w)."""
        crossed = np.einsum("chw,cthw->thw", template.coverage_colour, self.plate)
        squared = template.coverage_squared * self.plate_squared
        return self.inverse(template.colour_squared * self.weight - 2 * crossed + squared)


def spectrum(picture: np.ndarray) -> np.ndarray:
    """Compute the Fourier transform over the last two axes."""
    return np.fft.rfft2(picture.astype(np.float32))


class TemplateSpectra(NamedTuple):
    """A template as conjugate spectra: of T, c, c², c T and T·T, T with three channels first."""

    colour: np.ndarray
    coverage: np.ndarray
    coverage_squared: np.ndarray
    coverage_colour: np.ndarray
    colour_squared: np.ndarray


@lru_cache(maxsize=4096)
def template_spectra(appearance: Appearance, radius: float, angle: float, size: tuple[int, int]) -> TemplateSpectra:
    """Transform a thing centred on the first pixel of an otherwise empty frame, around whose edges it wraps."""
    height, width = size
    reach = min(ceil(radius) + 1, (min(size) - 1) // 2)
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32) / np.float32(radius)
    layer = render_at(appearance, right, down, angle, np.array(radius, np.float32))
    picture = np.zeros((4, height, width), np.float32)
    span = np.arange(-reach, reach + 1)
    picture[:, (span % height)[:, None], span % width] = rearrange(layer, "h w c -> c h w")
    colour, coverage = picture[:3], picture[3]
    parts = (colour, coverage, coverage * coverage, coverage * colour, (colour * colour).sum(0))
    return TemplateSpectra(*(np.conj(spectrum(part)) for part in parts))


YCC_COLOURS = to_ycc(np.array(list(COLOURS.values())))
"""The colours that a kind without its own can have, (8, 3)."""


def kind_maps(kind: str, radius: float, spectra: CanvasSpectra) -> tuple[np.ndarray, np.ndarray]:
    """Measure agreement and energy of a kind in all its colours, upright, on every pixel, each (colours, t, h, w)."""
    appearances = appearances_of(kind)
    template = template_spectra(appearances[0], radius, 0.0, spectra.size)
    if len(appearances) == 1:
        return spectra.agreement(template)[None], spectra.energy(template)[None]
    # A thing of one colour is its coverage times that colour, so one template serves all eight.
    cover, squared = template.coverage, template.coverage_squared
    covered = spectra.inverse(np.stack([*(cover * spectra.residual), cover * spectra.residual_plate]))
    agreement = np.einsum("nc,cthw->nthw", YCC_COLOURS, covered[:3]) - covered[3]
    products = [*(squared * spectra.plate), squared * spectra.plate_squared, squared * spectra.weight]
    changed = spectra.inverse(np.stack(products))
    own = np.einsum("n,thw->nthw", np.einsum("nc,nc->n", YCC_COLOURS, YCC_COLOURS), changed[4])
    return agreement, own - 2 * np.einsum("nc,cthw->nthw", YCC_COLOURS, changed[:3]) + changed[3]
