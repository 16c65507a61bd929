"""Approximate: what a network's blocks add changes little from step to step, so some of it is used again.

tokens (n, d) before the blocks, the blocks as a function  ->  tokens behind them, some clips without computing them

Two rules, both off by default. First-block cache (ParaAttention's FBCache, in the line of TeaCache, Liu et al. 2024)
runs the first block and looks how much its own change has changed. MagCache (Ma et al. 2025) bounds the error by how
the size of the change falls from step to step: there it is calibrated beforehand, here the run itself has shown it.
Each clip of a pack, and each of its two guidance branches, decides alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.packing.packs import Lengths

MOST_SKIPPED = 3  # calls in a row, of MagCache
RETAINED = 0.2  # share of the steps, at the noisy end, in which MagCache reuses nothing: layout is decided there


class Blocks(Protocol):
    """Some of a network's blocks in order, on the tokens (n, d) of some clips of the pack."""

    def __call__(self, x: Tensor, which: slice, clips: Sequence[int]) -> Tensor:
        """Tokens (n, d)."""
        ...


Around = Callable[[Tensor, Lengths, Blocks], Tensor]


@dataclass
class Change:
    """What the blocks did to a clip when they last ran, (n, d)."""

    first: Tensor | None  # by the first block alone
    rest: Tensor  # by the others, or by all where the first is not told apart
    size: float = 0.0
    trend: float | None = None  # the size's ratio from call to call
    error: float = 0.0
    skipped: int = 0


class BlockCache:
    """The last changes of every clip of a run, and how much has been computed."""

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.changes: dict[object, Change] = {}
        self.asked = self.computed = 0.0  # evaluations of the network on a clip

    @property
    def share(self) -> float:
        """What was computed of what was asked."""
        return self.computed / self.asked if self.asked else 1.0

    def at(self, keys: Sequence[object], sigma: float, num_blocks: int) -> Around:
        """What a forward pass does around its blocks, at a noise level; a key tells a clip from the others."""

        def around(x: Tensor, lengths: Lengths, blocks: Blocks) -> Tensor:
            self.asked += len(keys)
            if self.config.first_block_cache:
                return self.by_first_block(x, lengths, blocks, keys, num_blocks)
            return self.by_size(x, lengths, blocks, keys, sigma)

        return around

    def by_first_block(
        self, x: Tensor, lengths: Lengths, blocks: Blocks, keys: Sequence[object], num_blocks: int
    ) -> Tensor:
        """Run the first block on every clip, and the others where its change is another than when they last ran."""
        after = blocks(x, slice(0, 1), range(len(keys)))
        firsts = (after - x).split(lengths)
        todo = [i for i, (key, first) in enumerate(zip(keys, firsts, strict=True)) if not self._near(key, first)]
        made = run(after, lengths, blocks, slice(1, None), todo)
        before = after.split(lengths)
        for i, part in zip(todo, made, strict=True):
            self.changes[keys[i]] = Change(firsts[i], part - before[i])
        self.computed += (len(keys) + len(todo) * (num_blocks - 1)) / num_blocks
        return self._put_together(after, lengths, keys, dict(zip(todo, made, strict=True)))

    def _near(self, key: object, first: Tensor) -> bool:
        known = self.changes.get(key)
        if known is None or known.first is None or known.first.shape != first.shape:
            return False
        moved = (first - known.first).abs().mean() / known.first.abs().mean()
        return float(moved) < self.config.first_block_cache

    def by_size(self, x: Tensor, lengths: Lengths, blocks: Blocks, keys: Sequence[object], sigma: float) -> Tensor:
        """Run all blocks on the clips whose error would be too large, or cannot be known yet."""
        parts, shift = x.split(lengths), self.config.shift
        early = 1 - sigma / (shift - (shift - 1) * sigma) < RETAINED
        todo = [i for i, key in enumerate(keys) if early or not self._bounded(key, parts[i])]
        made = run(x, lengths, blocks, slice(None), todo)
        for i, part in zip(todo, made, strict=True):
            self.changes[keys[i]] = self._seen(keys[i], part - parts[i])
        self.computed += len(todo)
        return self._put_together(x, lengths, keys, dict(zip(todo, made, strict=True)))

    def _bounded(self, key: object, x: Tensor) -> bool:
        """Whether one more reuse stays below the error allowed; if so it is counted."""
        known = self.changes.get(key)
        if known is None or known.trend is None or known.rest.shape != x.shape or known.skipped >= MOST_SKIPPED:
            return False
        error = known.error + abs(1 - known.trend ** (known.skipped + 1))
        if error >= self.config.mag_cache:
            return False
        known.error, known.skipped = error, known.skipped + 1
        return True

    def _seen(self, key: object, change: Tensor) -> Change:
        """A new change, and the trend since the one before."""
        before, size = self.changes.get(key), float(change.norm())
        comparable = before is not None and before.rest.shape == change.shape and before.size > 0
        trend = (size / before.size) ** (1 / (before.skipped + 1)) if comparable and before is not None else None
        return Change(None, change, size, trend)

    def _put_together(self, x: Tensor, lengths: Lengths, keys: Sequence[object], made: dict[int, Tensor]) -> Tensor:
        """The clips that were computed as they are; onto the others what the blocks changed when they last ran."""
        parts = zip(keys, x.split(lengths), strict=True)
        return torch.cat(
            [made[i] if i in made else part + self.changes[key].rest for i, (key, part) in enumerate(parts)]
        )


def run(x: Tensor, lengths: Lengths, blocks: Blocks, which: slice, clips: Sequence[int]) -> list[Tensor]:
    """Some blocks on some clips of a pack, side by side."""
    if not clips:
        return []
    parts = x.split(lengths)
    some = x if len(clips) == len(lengths) else torch.cat([parts[i] for i in clips])
    return list(blocks(some, which, clips).split([lengths[i] for i in clips]))


def rows_of(lengths: Lengths, clips: Sequence[int]) -> Iterator[int]:
    """The rows of some clips of a pack."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for i in clips:
        yield from range(starts[i], starts[i] + lengths[i])


def cache_of(config: SampleConfig) -> BlockCache | None:
    """The cache that the settings ask for; none where they ask for none."""
    return BlockCache(config) if config.first_block_cache or config.mag_cache else None
