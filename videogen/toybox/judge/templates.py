"""What things would look like, and how much of a picture they would explain.

Look (kind, colour), Pose  ->  what is shown in each pixel;  that against a Canvas  ->  agreement and energy

A thing that covers a share c of a pixel with the colour T (premultiplied) changes the background B by e = T - cB. Where
the picture differs from the background by q, showing the thing at opacity a lowers the squared error by
2a(q·e) - a²(e·e): the two sums, agreement q·e and energy e·e, are all that is needed to choose among things and poses.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.colour_space import TO_SEEN, see
from videogen.toybox.world.motions import Pose, Thing
from videogen.toybox.world.shapes import draw
from videogen.toybox.world.things import COLOURS, KINDS, SPRITES


class Look(NamedTuple):
    """What a thing looks like: its kind, and its colour unless the kind has its own."""

    kind: str
    colour: str


def looks_of(kind: str) -> list[Look]:
    """A kind in all its colours."""
    return [Look(kind, colour) for colour in (("",) if kind in SPRITES else tuple(COLOURS))]


LOOKS: tuple[Look, ...] = tuple(look for kind in KINDS for look in looks_of(kind))


class Canvas(NamedTuple):
    """Frames to be explained: their difference from the background, the background, and what each pixel counts."""

    rest: np.ndarray  # (t, h, w, 3)
    plate: np.ndarray  # (t, h, w, 3)
    weight: np.ndarray  # (t, h, w)


def paint(look: Look, right: np.ndarray, up: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """What a thing shows at points of its disc, (..., 4): seen colours, premultiplied, and cover."""
    thing = Thing(kind=look.kind, colour=look.colour, size="", motion="still", radius=float(np.mean(radius)))
    shown = draw(thing, right, up, radius)
    return np.concatenate([shown[..., :3] @ TO_SEEN.T, shown[..., 3:]], axis=-1)


class Window(NamedTuple):
    """A square of pixels a frame, cut out of a canvas, that holds all of a thing: places (t, s), contents (t, s, s)."""

    rows: np.ndarray
    columns: np.ndarray
    rest: np.ndarray
    plate: np.ndarray
    weight: np.ndarray


def cut(canvas: Canvas, x: np.ndarray, y: np.ndarray, radius: float) -> Window:
    """The pixels around centres (t,); those beyond the frame have no weight."""
    height, width = canvas.weight.shape[1:]
    span = np.arange(-ceil(radius) - 1, ceil(radius) + 2)
    rows, columns = (rearrange(np.floor(place).astype(int), "t -> t 1") + span for place in (y, x))
    inside = rearrange((rows >= 0) & (rows < height), "t s -> t s 1") & rearrange(
        (columns >= 0) & (columns < width), "t s -> t 1 s"
    )
    place = (
        rearrange(np.arange(len(rows)), "t -> t 1 1"),
        rearrange(rows.clip(0, height - 1), "t s -> t s 1"),
        rearrange(columns.clip(0, width - 1), "t s -> t 1 s"),
    )
    return Window(rows, columns, canvas.rest[place], canvas.plate[place], canvas.weight[place] * inside)


def energy_of(look: Look, pose: Pose, canvas: Canvas) -> np.ndarray:
    """What a thing would change if all of it were inside the frame and before everything else, (t,)."""
    window = cut(canvas, pose.x, pose.y, float(pose.radius.max()))
    change = change_of(shown_in(look, pose, window), window)
    return np.einsum("thwc,thwc->t", change, change)


def energy_there(pose: Pose, canvas: Canvas) -> np.ndarray:
    """What there is to be explained in a thing's circle, (t,)."""
    window = cut(canvas, pose.x, pose.y, float(pose.radius.max()))
    x, y, radius = (rearrange(part, "t -> t 1 1") for part in pose[:3])
    right = rearrange(window.columns, "t s -> t 1 s") + 0.5 - x
    down = rearrange(window.rows, "t s -> t s 1") + 0.5 - y
    return np.einsum("thwc,thwc,thw->t", window.rest, window.rest, window.weight * (np.hypot(right, down) < radius))


def change_of(shown: np.ndarray, window: Window) -> np.ndarray:
    """What showing something (t, s, s, 4) would change in a window, at full opacity: e (t, s, s, 3)."""
    return shown[..., :3] - shown[..., 3:] * window.plate


def shown_in(look: Look, pose: Pose, window: Window) -> np.ndarray:
    """What a thing in a pose shows in a window, (t, s, s, 4)."""
    x, y, radius, angle = (rearrange(part.astype(np.float32), "t -> t 1 1") for part in pose[:4])
    right = (rearrange(window.columns, "t s -> t 1 s") + np.float32(0.5) - x) / radius
    down = (rearrange(window.rows, "t s -> t s 1") + np.float32(0.5) - y) / radius
    cosine, sine = np.cos(angle), np.sin(angle)
    return paint(look, cosine * right + sine * down, sine * right - cosine * down, radius)


def measure(change: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and energy, each (t,), of what a thing would change."""
    agreement = np.einsum("thwc,thwc,thw->t", window.rest, change, window.weight)
    energy = np.einsum("thwc,thwc,thw->t", change, change, window.weight)
    return agreement, energy


def gain(agreement: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """How much of the squared error goes, at the best opacity between nothing and everything."""
    opacity = np.clip(agreement / np.maximum(energy, 1e-6), 0, 1)
    return opacity * (2 * agreement - opacity * energy)


def likeness(explained: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """How well what is explained fits a thing of some energy, 0 to 1: brighter than it is as wrong as fainter."""
    return np.clip(1 - np.abs(1 - explained / np.maximum(energy, 1.0)), 0, 1)


# --- the same for every place of a frame at once, by Fourier transforms


class Maps(NamedTuple):
    """A canvas as spectra (t, h, w / 2 + 1) of all that agreement and energy are sums of, and its frames' size."""

    size: tuple[int, int]
    rest: np.ndarray  # w q, three channels first
    along: np.ndarray  # w q·B
    rest_squared: np.ndarray  # w q·q
    weight: np.ndarray  # w
    plate: np.ndarray  # w B, three channels first
    plate_squared: np.ndarray  # w B·B


def transform(canvas: Canvas) -> Maps:
    """The spectra of a canvas."""
    weight, rest, plate = canvas.weight, canvas.rest, canvas.plate
    weighted = rearrange(weight, "t h w -> t h w 1")
    return Maps(
        size=(weight.shape[1], weight.shape[2]),
        rest=spectrum(rearrange(weighted * rest, "t h w c -> c t h w")),
        along=spectrum(weight * np.einsum("thwc,thwc->thw", rest, plate)),
        rest_squared=spectrum(weight * np.einsum("thwc,thwc->thw", rest, rest)),
        weight=spectrum(weight),
        plate=spectrum(rearrange(weighted * plate, "t h w c -> c t h w")),
        plate_squared=spectrum(weight * np.einsum("thwc,thwc->thw", plate, plate)),
    )


def spectrum(picture: np.ndarray) -> np.ndarray:
    """The Fourier transform of the last two axes."""
    return np.fft.rfft2(picture.astype(np.float32))


def back(spectra: np.ndarray, maps: Maps) -> np.ndarray:
    """The inverse of spectrum."""
    return np.fft.irfft2(spectra, s=maps.size)


class Stamps(NamedTuple):
    """A template as conjugate spectra: of T, cover, cover², cover T and T·T, T with three channels first."""

    colour: np.ndarray
    cover: np.ndarray
    cover_squared: np.ndarray
    cover_colour: np.ndarray
    colour_squared: np.ndarray


@lru_cache(maxsize=4096)
def stamp(look: Look, radius: float, angle: float, size: tuple[int, int]) -> Stamps:
    """A thing about the first pixel's centre of an otherwise empty frame, beyond whose edges it goes on."""
    height, width = size
    reach = min(ceil(radius) + 1, (min(size) - 1) // 2)
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32) / np.float32(radius)
    cosine, sine = np.cos(angle), np.sin(angle)
    shown = paint(look, cosine * right + sine * down, sine * right - cosine * down, np.array(radius, np.float32))
    picture = np.zeros((4, height, width), np.float32)
    span = np.arange(-reach, reach + 1)
    picture[:, (span % height)[:, None], span % width] = rearrange(shown, "h w c -> c h w")
    colour, cover = picture[:3], picture[3]
    parts = (colour, cover, cover * cover, cover * colour, (colour * colour).sum(0))
    return Stamps(*(np.conj(spectrum(part)) for part in parts))


def slide_agreement(stamps: Stamps, maps: Maps) -> np.ndarray:
    """Agreement of one template centred on every pixel, (t, h, w)."""
    return back(np.einsum("chw,cthw->thw", stamps.colour, maps.rest) - stamps.cover * maps.along, maps)


def slide_energy(stamps: Stamps, maps: Maps) -> np.ndarray:
    """Energy of one template centred on every pixel, (t, h, w)."""
    crossed = np.einsum("chw,cthw->thw", stamps.cover_colour, maps.plate)
    squared = stamps.cover_squared * maps.plate_squared
    return back(stamps.colour_squared * maps.weight - 2 * crossed + squared, maps)


PAINTS = see(np.array(list(COLOURS.values())))
"""The colours that a kind without its own can have, (8, 3)."""


def slide_all_colours(stamps: Stamps, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """The same in every colour, from a template in any one: agreement and energy, each (8, t, h, w)."""
    cover, squared = stamps.cover, stamps.cover_squared
    agreeing = back(np.stack([*(cover * maps.rest), cover * maps.along]), maps)
    changing = back(np.stack([*(squared * maps.plate), squared * maps.plate_squared, squared * maps.weight]), maps)
    agreement = np.einsum("nc,cthw->nthw", PAINTS, agreeing[:3]) - agreeing[3]
    own = np.einsum("n,thw->nthw", np.einsum("nc,nc->n", PAINTS, PAINTS), changing[4])
    return agreement, own - 2 * np.einsum("nc,cthw->nthw", PAINTS, changing[:3]) + changing[3]


def slide_kind(kind: str, radius: float, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and energy of every look of a kind, upright, each (looks, t, h, w)."""
    looks = looks_of(kind)
    stamps = stamp(looks[0], radius, 0.0, maps.size)
    if len(looks) > 1:
        return slide_all_colours(stamps, maps)
    return slide_agreement(stamps, maps)[None], slide_energy(stamps, maps)[None]
