"""What is known of a clip beforehand, as pixels: images, clips, and masks that leave parts of them free.

    image | clip, time, mask, weight  ->  Known  ->  (VAE)  ->  KnownLatent;  Known, frames made  ->  frames

A latent frame holds several frames (the first one frame), and is known where all of its frames are. An image stands
still for the frames of its latent frame. Frames of another size are scaled to the clip's, and cropped or padded where
their aspect is another: never stretched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from videogen.config.sample import SampleConfig, resolve_frames
from videogen.sampling.known_tokens import KnownLatent, free_latent

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

    from videogen.models.streaming import Autoencoder

Fit = Literal["crop", "pad"]
SEAM_FRAMES = 8  # beside a given clip, over which what the VAE loses of it fades in
SMALL_STEP = 16  # of 255: up to here a step behind a given clip is taken for an error, from twice that on for a motion


class Known(NamedTuple):
    """A part of a clip that is given."""

    frames: Tensor  # (t, h, w, 3) uint8, of any size; a single one is an image, and stands for a moment
    seconds: float = 0.0  # when the first of them is on screen; infinity is the clip's last frame
    free: Tensor | None = None  # (1 or t, h, w) bool, True where the clip is made anew
    weight: float = 1.0  # 1 is given, less is held only while there is so much noise, 0 is no more than a start
    fit: Fit = "crop"
    latent: Tensor | None = None  # (c, t, h, w) of the frames, where it is at hand

    @classmethod
    def first(cls, image: Image | ndarray | Tensor, *, weight: float = 1.0, fit: Fit = "crop") -> Known:
        """Give the clip's first frame."""
        return cls.at(image, 0.0, weight=weight, fit=fit)

    @classmethod
    def last(cls, image: Image | ndarray | Tensor, *, weight: float = 1.0, fit: Fit = "crop") -> Known:
        """Give the clip's last frame."""
        return cls.at(image, math.inf, weight=weight, fit=fit)

    @classmethod
    def at(cls, image: Image | ndarray | Tensor, seconds: float, *, weight: float = 1.0, fit: Fit = "crop") -> Known:
        """Give the frame on screen at a time."""
        return cls(check_frames_given(to_frames(image), single=True), seconds, weight=check_weight(weight), fit=fit)

    @classmethod
    def clip(
        cls, frames: ndarray | Tensor | Sequence[Image], at: float = 0.0, *, weight: float = 1.0, fit: Fit = "crop"
    ) -> Known:
        """Give frames (t, h, w, 3), of the clip's own rate, from a time on; weight 0 is a start for `strength`."""
        return cls(check_frames_given(to_frames(frames)), at, weight=check_weight(weight), fit=fit)

    @classmethod
    def mask(
        cls, frames: ndarray | Tensor | Sequence[Image], mask: Image | ndarray | Tensor, *, fit: Fit = "crop"
    ) -> Known:
        """Give frames (t, h, w, 3) outside of a mask, an image or a clip of their size whose white is made anew."""
        given = check_frames_given(to_frames(frames))
        return cls(given, free=check_mask(to_frames(mask), given), fit=fit)

    def start(self, num_frames: int, fps: float) -> int:
        """Return the frame of a clip at which this begins; a ValueError where it does not lie in the clip."""
        start = num_frames - 1 if self.seconds == math.inf else round(self.seconds * fps)
        if start < 0 or start + len(self.frames) > num_frames:
            what = "an image" if len(self.frames) == 1 else f"{len(self.frames)} frames"
            raise ValueError(
                f"{what} at {self.seconds:g} s of a clip of {num_frames} frames ({num_frames / fps:g} s) does not lie "
                "in it; make the clip longer (--seconds), or give less"
            )
        return start


def to_frames(pictures: Image | ndarray | Tensor | Sequence[Image]) -> Tensor:
    """Convert a picture, or many, to frames (t, h, w, 3) uint8; floats are taken as 0 ... 1, grey as three channels."""
    import numpy as np

    if isinstance(pictures, (list, tuple)):
        return torch.cat([to_frames(picture) for picture in pictures])
    if hasattr(pictures, "convert"):  # of Pillow, which need not be imported to ask
        pictures = np.array(pictures.convert("RGB"))  # type: ignore[union-attr]
    frames = torch.as_tensor(pictures)  # type: ignore[arg-type]
    if frames.ndim == 2 or (frames.ndim == 3 and frames.shape[-1] not in (1, 3)):
        frames = frames[..., None]
    if frames.ndim == 3:
        frames = frames[None]
    if frames.dtype == torch.bool:
        frames = 255 * frames.to(torch.uint8)
    if frames.is_floating_point():
        frames = (frames.clamp(0, 1) * 255).round()
    return (frames if frames.shape[-1] == 3 else frames.expand(*frames.shape[:-1], 3)).to(torch.uint8)


def check_frames_given(frames: Tensor, *, single: bool = False) -> Tensor:
    """Refuse what are no frames."""
    if frames.ndim != 4 or frames.numel() == 0:
        raise ValueError(f"a picture is (h, w, 3) and a clip (t, h, w, 3), got {tuple(frames.shape)}")
    if single and len(frames) != 1:
        raise ValueError(f"an image is one picture, got {len(frames)}; Known.clip takes several")
    return frames


def check_weight(weight: float) -> float:
    """Refuse a weight outside of 0 ... 1."""
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of what is known must be from 0 (free) to 1 (given), got {weight:g}")
    return weight


def check_mask(mask: Tensor, frames: Tensor, name: str = "the mask") -> Tensor:
    """Return which pixels (1 or t, h, w) a mask frees; a ValueError where it does not fit the frames or frees none."""
    if mask.shape[1:3] != frames.shape[1:3]:
        sizes = ["x".join(map(str, part.shape[2:0:-1])) for part in (mask, frames)]
        raise ValueError(f"{name} is {sizes[0]} and what it masks {sizes[1]}; give one of {sizes[1]}")
    if len(mask) not in (1, len(frames)) and len(mask) < len(frames):
        raise ValueError(f"{name} has {len(mask)} frames and what it masks {len(frames)}; give one, or as many")
    free = mask[: len(frames)].float().mean(-1) >= 128
    if not free.any() or free.all():
        colour, means = ("white", "keeps nothing") if free.all() else ("black", "makes nothing anew")
        raise ValueError(f"{name} is all {colour} and {means}; white is made anew, black is kept")
    return free


def fit_box(width: int, height: int, to: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the middle of a picture that has the aspect of another size, as (left, top, right, bottom)."""
    scale = min(width / to[0], height / to[1])
    w, h = to[0] * scale, to[1] * scale
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def fit_frames(frames: Tensor, width: int, height: int, fit: Fit = "crop") -> Tensor:
    """Scale frames (t, h, w, 3) uint8 to a size, never stretched: their middle is cropped, or bars of black added.

    They are scaled by Pillow's Lanczos filter, as diffusers does it.
    """
    if (frames.shape[2], frames.shape[1]) == (width, height):
        return frames
    import numpy as np
    from PIL import Image

    pictures = []
    for frame in frames.cpu().numpy():
        picture = Image.fromarray(frame)
        if fit == "crop":
            box = fit_box(picture.width, picture.height, (width, height))
            fitted = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
        else:
            scale = min(width / picture.width, height / picture.height)
            size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
            fitted = Image.new("RGB", (width, height))
            corner = ((width - size[0]) // 2, (height - size[1]) // 2)
            fitted.paste(picture.resize(size, Image.Resampling.LANCZOS), corner)
        pictures.append(torch.from_numpy(np.array(fitted)))
    return torch.stack(pictures)


def fit_known(piece: Known, width: int, height: int) -> Known:
    """Scale what is known to a clip's size; a pixel is free where a part of it is."""
    frames = fit_frames(piece.frames, width, height, piece.fit)
    if piece.free is None or frames is piece.frames:
        return piece._replace(frames=frames)
    white = repeat(255 * piece.free.to(torch.uint8), "t h w -> t h w rgb", rgb=3)
    return piece._replace(frames=frames, free=fit_frames(white, width, height, piece.fit)[..., 0] > 0)


def to_pixels(frames: Tensor) -> Tensor:
    """Convert frames (t, h, w, 3) uint8 to a clip (3, t, h, w) in [-1, 1]."""
    return rearrange(2 * (frames.float() / 255) - 1, "t h w c -> c t h w")


@torch.no_grad()
def encode_known(
    pieces: Sequence[Known],
    vae: Autoencoder,
    shape: Sequence[int],
    config: SampleConfig,
    device: torch.device,
) -> KnownLatent:
    """Encode what is known of a clip of some settings, whose latent is (c, t, h, w)."""
    known = free_latent(shape)
    for piece in pieces:
        piece = fit_known(piece, config.width, config.height)
        start = piece.start(resolve_frames(config, vae.time_stride), config.fps)
        first, latent = encode_piece(piece, start, vae, device)
        part = slice(first, first + latent.shape[1])
        known.clean[:, part] = latent
        known.weight[part] = piece.weight * weight_of_cells(piece, start, first, latent.shape, vae)
    return known


def encode_piece(piece: Known, start: int, vae: Autoencoder, device: torch.device) -> tuple[int, Tensor]:
    """Encode frames that begin at a frame of a clip: the first latent frame that they fill, and those (c, t, h, w)."""
    stride = vae.time_stride
    if piece.latent is not None and start % stride == 0:
        return start // stride + (start > 0), piece.latent[:, start > 0 :].float().cpu()
    first, frames = frames_to_encode(piece.frames, start, stride)
    if not len(frames):
        raise ValueError(
            f"{len(piece.frames)} frames at {piece.seconds:g} s fill no latent frame, which holds {stride}; "
            f"give at least {1 + first * stride - start}"
        )
    clip = rearrange(to_pixels(frames), "c t h w -> 1 c t h w")
    latent = vae.encode(clip.to(device, next(vae.parameters()).dtype))[0].float().cpu()
    return first, latent[:, min(first, 1) :]  # what comes before a latent frame is only the context it is encoded in


def frames_to_encode(frames: Tensor, start: int, stride: int) -> tuple[int, Tensor]:
    """Choose the frames to encode of those that begin at a frame of a clip, and the first latent frame they fill.

    A causal VAE encodes the first frame alone. Frames that begin later are encoded behind the one before them, or where
    there is none behind a still of their first.
    """
    if len(frames) == 1:
        first = -(-start // stride)
        return first, frames if first == 0 else frames.expand(1 + stride, -1, -1, -1)
    if start == 0:
        return 0, frames[: 1 + (len(frames) - 1) // stride * stride]
    first = 1 + -(-(start - 1) // stride)
    skip = 1 + (first - 1) * stride - start  # frames before the first that fills a latent frame from its beginning
    whole = (len(frames) - skip) // stride * stride
    if whole <= 0:
        return first, frames[:0]
    return first, torch.cat([frames[max(0, skip - 1)][None], frames[skip : skip + whole]])


def weight_of_cells(piece: Known, start: int, first: int, shape: Sequence[int], vae: Autoencoder) -> Tensor:
    """Return 1 for each latent cell (t, h, w) that is given and 0 for one of which any pixel is free."""
    _, t, h, w = shape
    if piece.free is None:
        return torch.ones(t, h, w)
    stride, side = vae.time_stride, vae.space_stride
    free = piece.free.expand(len(piece.frames), -1, -1)
    if len(free) == 1:
        free = free.expand(stride, -1, -1)
    elif first == 0:
        free = torch.cat([free[:1].expand(stride - 1, -1, -1), free])
    else:
        free = free[1 + (first - 1) * stride - start :]
    cells = reduce(free[: t * stride].float(), "(t pt) (h ph) (w pw) -> t h w", "max", pt=stride, ph=side, pw=side)
    return 1 - cells


def overlay(chunks: Iterable[Tensor], pieces: Sequence[Known], config: SampleConfig, stride: int) -> Iterator[Tensor]:
    """Put the pixels of given clips in the place of those that the VAE made of them, in frames (t, h, w, 3) uint8.

    So a clip that is extended keeps its pixels, and one that is masked all those outside of the mask. What the VAE
    loses of a given frame would be a step at its seam: in the made frames beside it that loss is made good, less with
    each. So is what the network gets wrong of a wall, where the step behind a given clip is small: less than half of
    the step is left, and the frames are nearer to the clip's true ones (assets/LOG.md). An image stays as the VAE shows
    it, like the frames beside it: one sharper frame would flicker. So does a clip whose latent is at hand, for its
    pixels are the VAE's already.
    """
    is_clip = [len(piece.frames) > 1 or piece.free is not None for piece in pieces]
    given = [
        fit_known(piece, config.width, config.height)
        for piece, replaces in zip(pieces, is_clip, strict=True)
        if replaces and piece.weight == 1 and piece.latent is None
    ]
    num_frames = resolve_frames(config, stride)
    starts = [piece.start(num_frames, config.fps) for piece in given]
    ends = [start + len(piece.frames) for piece, start in zip(given, starts, strict=True)]
    seams = list[Seam]()
    held, place = torch.empty(0, config.height, config.width, 3, dtype=torch.uint8), 0  # frames before the next clip
    for chunk in chunks:
        frames, first, until = torch.cat([held, chunk]), place - len(held), place + len(chunk)
        for seam in seams:
            seam.smooth(frames, first, first_new=len(held))
        for piece, start, end in zip(given, starts, ends, strict=True):
            low, high = max(place, start), min(until, end)
            if low >= high:
                continue
            made, source = frames[low - first : high - first].clone(), piece.frames[low - start : high - start]
            if piece.free is not None:
                free = piece.free.expand(len(piece.frames), -1, -1)[low - start : high - start, ..., None]
                source = torch.where(free, made, source)
            elif low == start:
                num = min(SEAM_FRAMES, start - max((other for other in ends if other <= start), default=0))
                add_loss(frames, source[0].float() - made[0], range(low - 1 - first, low - 1 - num - first, -1))
            frames[low - first : high - first] = source
            if piece.free is None and high == end:
                num = min(SEAM_FRAMES, min((other for other in starts if other >= end), default=num_frames) - end)
                seams.append(Seam(end, num, source[-1], made[-1]))
                seams[-1].smooth(frames, first)
        cut = len(frames) - min(len(frames), SEAM_FRAMES if any(start >= until for start in starts) else 0)
        if cut:
            yield frames[:cut]
        held, place = frames[cut:], until


class Seam:
    """The frames behind a given clip, over which what is lost at its end fades in."""

    def __init__(self, place: int, num: int, given: Tensor, made: Tensor) -> None:
        self.place, self.num = place, num  # the first frame behind the clip, and how many
        self.made: Tensor | None = made  # the clip's last frame as the VAE shows it (h, w, 3), until the next is seen
        self.loss = given.float() - made

    def smooth(self, frames: Tensor, first: int, first_new: int = 0) -> None:
        """Make the loss good in the new ones of some frames (t, h, w, 3) uint8, whose first is the clip's `first`."""
        at = self.place - first
        if self.made is not None and 0 <= at < len(frames):
            step = self.made.float() - frames[at]
            size = step.abs().amax(-1, keepdim=True)  # of the colour that changes most
            self.loss, self.made = self.loss + step * (2 - size / SMALL_STEP).clamp(0, 1), None
        add_loss(frames, self.loss, range(at, at + self.num), first_new=first_new)


def add_loss(frames: Tensor, loss: Tensor, places: range, first_new: int = 0) -> None:
    """Add to frames (t, h, w, 3) uint8 what the VAE lost of the frame at their seam, less with the distance from it."""
    for distance, place in enumerate(places, start=1):
        if first_new <= place < len(frames):
            share = 1 - distance / (len(places) + 1)
            frames[place] = (frames[place].float() + share * loss).round().clamp(0, 255).to(torch.uint8)
