"""Cut latents of any size into spacetime patches and lay them end to end.

    latents [(c, t, h, w), ...]  ->  PackedVideo: tokens (n, c·pt·ph·pw), grids [(t, h, w), ...], patch

A pack has no padding and no order of its own: a clip's tokens stay together, and each knows where it is in its clip.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, islice
from typing import NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from videogen.patches import Patch

Grid = tuple[int, int, int]
Lengths = tuple[int, ...]
Item = TypeVar("Item")


class Scaling(NamedTuple):
    """How places are told where a clip is longer or larger than trained (scaling.py)."""

    kind: str
    trained: Grid  # in base cells


class PackedVideo(NamedTuple):
    """Clips side by side; grids are counted in patches, so a clip has t·h·w tokens."""

    tokens: Tensor  # (n, c·pt·ph·pw)
    grids: tuple[Grid, ...]
    patch: Patch
    scaling: Scaling | None = None

    @property
    def lengths(self) -> Lengths:
        """Tokens of each clip: host integers, so that attention splits without asking the device."""
        return tuple(math.prod(grid) for grid in self.grids)


class Layout:
    """Which clips lie side by side in a pack: grids (t, h, w), lengths n.

    No tuple: --compile looks into those, and would compile anew for each number of clips.
    """

    def __init__(self, grids: Sequence[Grid], lengths: Lengths | None = None) -> None:
        self.grids = tuple(grids)
        self.lengths = tuple(map(math.prod, self.grids)) if lengths is None else lengths


class NoiseLevels(NamedTuple):
    """How noisy each token is: a few distinct levels and, for each token, which of them it has.

    Modulations are computed for the values alone and gathered, so a pack of one level costs one row, not n.
    """

    values: Tensor  # (u,) float32, 0 clean ... 1 noise
    index: Tensor  # (n,) int64  # pyright: ignore[reportIncompatibleMethodOverride]

    def per_token(self) -> Tensor:
        """The noise level of every token, (n, 1)."""
        return rearrange(self.values[self.index], "n -> n 1")


def check_patch(shape: Sequence[int], patch: Patch) -> Grid:
    """The grid of patches of a (c, t, h, w) latent; a ValueError where the patch does not divide it."""
    if any(side % cut for side, cut in zip(shape[1:], patch, strict=True)):
        raise ValueError(f"a latent of {tuple(shape[1:])} frames, rows, columns cannot be cut into patches of {patch}")
    t, h, w = (side // cut for side, cut in zip(shape[1:], patch, strict=True))
    return t, h, w


def patchify(latent: Tensor, patch: Patch) -> Tensor:
    """A latent (c, t, h, w) as tokens (t·h·w, c·pt·ph·pw), row-major; within a token the order of a Conv3d weight."""
    pt, ph, pw = patch
    return rearrange(latent, "c (t pt) (h ph) (w pw) -> (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """Tokens (t·h·w, c·pt·ph·pw) back to the latent (c, t, h, w)."""
    (t, h, w), (pt, ph, pw) = grid, patch
    return rearrange(tokens, "(t h w) (c pt ph pw) -> c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


def pack(latents: Sequence[Tensor], patch: Patch) -> PackedVideo:
    """Latents of any sizes as one pack, in the order given."""
    grids = tuple(check_patch(latent.shape, patch) for latent in latents)
    return PackedVideo(torch.cat([patchify(latent, patch) for latent in latents]), grids, patch)


def unpack(video: PackedVideo) -> list[Tensor]:
    """The latents of a pack, bit for bit as they went in."""
    clips = video.tokens.split(video.lengths)
    return [unpatchify(tokens, grid, video.patch) for tokens, grid in zip(clips, video.grids, strict=True)]


def recut(video: PackedVideo, patch: Patch) -> PackedVideo:
    """The same clips in patches of another size; a ValueError where a latent is no multiple of them."""
    return video if video.patch == patch else pack(unpack(video), patch)._replace(scaling=video.scaling)


def positions(grids: Sequence[Grid], patch: Patch, base: Patch = (1, 2, 2)) -> Tensor:
    """Patch centres in base-cell units, (n, 3) float64: a base patch at grid place (f, r, c) is at (f, r, c).

    A base cell is the model's own patch, 1 x 2 x 2 latent cells in Wan, so that a coarse patch lies at the mean of the
    base patches it covers: every patch size shares one rotary embedding (FlexiDiT, Anagnostidis et al. 2025).
    """
    clips = []
    for grid in grids:
        axes = [
            (torch.arange(side, dtype=torch.float64) + 0.5) * cut / cell - 0.5
            for side, cut, cell in zip(grid, patch, base, strict=True)
        ]
        clips.append(rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "place t h w -> (t h w) place"))
    return torch.cat(clips)


def per_clip(values: Tensor, lengths: Lengths) -> NoiseLevels:
    """One noise level a clip (b,)."""
    clips = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return NoiseLevels(values.float(), clips.to(values.device))


def per_frame(sigmas: Sequence[Tensor], grids: Sequence[Grid]) -> NoiseLevels:
    """One noise level a token frame: for each clip a tensor (t,), t counted in patches."""
    frames = torch.cat(list(sigmas)).float()
    cells = torch.tensor([h * w for (t, h, w) in grids for _ in range(t)])
    assert len(frames) == len(cells), f"{len(frames)} noise levels for {len(cells)} frames of {grids}"
    return NoiseLevels(frames, torch.arange(len(cells)).repeat_interleave(cells).to(frames.device))


def shared_level(values: Tensor, num_tokens: int) -> NoiseLevels:
    """The same noise level (1,) for every token."""
    return NoiseLevels(values, torch.zeros(num_tokens, dtype=torch.long, device=values.device))


def check_budget(lengths: Sequence[int], budget: int) -> None:
    """Refuse a budget that is smaller than the longest clip."""
    if (longest := max(lengths, default=0)) > budget:
        raise ValueError(f"the budget of a pack must hold the longest clip of {longest} tokens, got {budget}")


def plan_packs(
    lengths: Sequence[int], *, budget: int, order: Sequence[int] | None = None, window: int = 64
) -> list[list[int]]:
    """Group clips into packs of at most budget tokens, each in exactly one; a pure function of its arguments.

    The packs are as few as the budget allows and share the tokens evenly, so that every step, and every process in it,
    has the same work and no step has a few clips alone. A pack opens with the clips that have waited longest, so none
    starves; its last part is the fullest choice among the next window clips. Inside a pack clips of equal length stand
    together, so that attention runs over few groups.
    """
    check_budget(lengths, budget)
    line = deque(order if order is not None else range(len(lengths)))  # a clip may stand in it several times
    left, packs = sum(lengths[clip] for clip in line), list[list[int]]()
    spare = 2 * max((lengths[clip] for clip in line), default=0)  # what is left to choose: enough for an exact fit
    while line:
        packed = [line.popleft()]
        room = -(-left // -(-left // budget)) - lengths[packed[0]]
        while line and lengths[line[0]] + spare <= room:
            packed.append(line.popleft())
            room -= lengths[packed[-1]]
        near = [line.popleft() for _ in range(min(window, len(line)))]
        chosen = fullest([lengths[clip] for clip in near], room)
        packed += [near[place] for place in chosen]
        line.extendleft(near[place] for place in reversed(range(len(near))) if place not in chosen)
        left -= sum(lengths[clip] for clip in packed)
        packs.append(sorted(packed, key=lambda clip: -lengths[clip]))
    return packs


def deal(packs: Iterable[Item], work: Callable[[Item], float], ranks: int, *, steps: int) -> Iterator[Item]:
    """The same packs in another order: those of a step, one for each of so many ranks, are about the same work.

    Full packs have as many tokens as each other, but attention grows with the square of a clip's, and a step waits for
    its slowest rank. So many steps' packs are sorted by work and cut into steps, which follow in any order.
    """
    stream = iter(packs)
    for number in count() if ranks > 1 else ():
        window = sorted(islice(stream, ranks * steps), key=work)
        if not window:
            break
        cut = [window[i : i + ranks] for i in range(0, len(window), ranks)]
        last = [cut.pop()] if len(cut[-1]) < ranks else []  # of the end of the stream
        random.Random(number).shuffle(cut)
        yield from chain.from_iterable(cut + last)
    yield from stream


def fullest(lengths: Sequence[int], room: int) -> set[int]:
    """The places of lengths whose sum is the largest within room; of equal sums, one with long clips.

    Bit s of a number says whether the sum s can be reached with the clips so far: a subset sum in whole-number shifts.
    """
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    within = (1 << max(0, room) + 1) - 1
    reached = list(accumulate(places, lambda sums, place: (sums | sums << lengths[place]) & within, initial=1))
    chosen, total = set[int](), reached.pop().bit_length() - 1
    for place, sums in zip(reversed(places), reversed(reached), strict=True):  # long ones first: short ones fill gaps
        if lengths[place] <= total and sums >> total - lengths[place] & 1:
            chosen.add(place)
            total -= lengths[place]
    return chosen
